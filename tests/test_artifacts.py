"""The files of a sweep: one contract for a folder and for S3, then what is particular to each."""

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.artifacts import Artifacts, DamagedArtifactError, MissingArtifactError, Stored, open_artifacts
from cifar_sweep.errors import DiskError, UsageError

# boto3 and moto announce, as they change, what they will no longer do.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Boto3 will no longer support")

NAME = "lr_batch-1a2b3c4d/trial-0007/weights-9f8e7d6c.safetensors"
BESIDE = "lr_batch-1a2b3c4d/trial-0007/checkpoint-01234567.safetensors"
MEGABYTE = bytes(range(256)) * 4096
SECRET = "geheim-1234"
BAD_NAMES = ("..", "../weights", "a/../../weights", "a/..", "a/./b", "/etc/weights", "a//b", "a/", "", "a\\b", "a\0b")


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A client, not ours, of an S3 server in this process that lets everybody in."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server", exc_type=ImportError)
    from moto.s3.responses import S3Response

    put, one_at_a_time = S3Response._key_response_put, threading.Lock()

    def put_alone(*arguments: Any, **options: Any) -> Any:
        with one_at_a_time:  # else moto drops a key's old content while another request is at it, and answers 500
            return put(*arguments, **options)

    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(S3Response, "_key_response_put", put_alone)
        server.start()
        host, port = server.get_host_and_port()
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        with closing(boto3.Session(**keys).client("s3", endpoint_url=f"http://{host}:{port}")) as client:
            yield client
        server.stop()


@pytest.fixture
def amazon(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user of that server: keys, and nothing from the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.meta.endpoint_url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def keys_in_bucket(s3: Any) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="lab")
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


@pytest.fixture
def bucket(s3: Any, amazon: None) -> Iterator[Any]:
    """`s3`, with an empty bucket named lab."""
    s3.create_bucket(Bucket="lab")
    yield s3
    for key in keys_in_bucket(s3):
        s3.delete_object(Bucket="lab", Key=key)
    s3.delete_bucket(Bucket="lab")


@dataclass(frozen=True)
class Place:
    """A store, and what it holds, seen without our code."""

    artifacts: Artifacts
    s3: Any = None

    def names(self) -> set[str]:
        """The names of all files, and of all folders."""
        root = self.artifacts.root
        if root is not None:
            return {str(path.relative_to(root)) for path in root.rglob("*")}
        assert self.artifacts.address == "s3://lab/sweeps/mine"
        return {key.removeprefix("sweeps/mine/") for key in keys_in_bucket(self.s3)}

    def overwrite(self, name: str, content: bytes) -> None:
        if self.artifacts.root is not None:
            (self.artifacts.root / name).write_bytes(content)
        else:
            self.s3.put_object(Bucket="lab", Key=f"sweeps/mine/{name}", Body=content)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(open_artifacts(str(tmp_path / "artifacts")))
    s3 = request.getfixturevalue("bucket")
    return Place(open_artifacts("s3://lab/sweeps/mine"), s3)


@pytest.fixture
def artifacts(place: Place) -> Artifacts:
    return place.artifacts


def assert_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    assert SECRET not in message


# The contract


@pytest.mark.parametrize("content", [b"", MEGABYTE, MEGABYTE * 9], ids=["0 B", "1 MB", "in parts"])
def test_what_is_put_is_got(artifacts: Artifacts, content: bytes) -> None:
    stored = artifacts.put(NAME, content)
    assert stored == Stored(NAME, hashlib.sha256(content).hexdigest(), len(content))
    assert artifacts.get(stored) == content


@pytest.mark.slow
def test_a_file_is_found_by_another_process(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> None:
    stored = artifacts.put(NAME, MEGABYTE)
    script = (
        "import json, sys; from cifar_sweep.artifacts import *\n"
        "print(len(open_artifacts(sys.argv[1]).get(Stored(**json.loads(sys.argv[2])))))"
    )
    command = [sys.executable, "-c", script, artifacts.address, json.dumps(asdict(stored))]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert int(subprocess.run(command, cwd=elsewhere, stdout=subprocess.PIPE, check=True).stdout) == len(MEGABYTE)


def test_a_file_is_overwritten(artifacts: Artifacts) -> None:
    before, after = artifacts.put(NAME, b"before"), artifacts.put(NAME, b"after, and longer")
    assert artifacts.get(after) == b"after, and longer"
    with pytest.raises(DamagedArtifactError):
        artifacts.get(before)


def test_a_missing_file_is_told(artifacts: Artifacts) -> None:
    artifacts.put(BESIDE, b"another")
    with pytest.raises(MissingArtifactError) as missing:
        artifacts.get(Stored(NAME, "0" * 64, 1))
    assert f"{artifacts.address}/{NAME}" in str(missing.value)
    assert_one_sentence(str(missing.value))


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (MEGABYTE[:-1], "has 1048575 bytes; 1048576 were written"),
        (b"", "has 0 bytes"),
        (MEGABYTE + b"\0", "has 1048577 bytes"),
        (MEGABYTE[:5000] + bytes([MEGABYTE[5000] ^ 1]) + MEGABYTE[5001:], "checksum"),
    ],
    ids=["truncated", "empty", "longer", "one bit"],
)
def test_a_damaged_file_is_told(place: Place, artifacts: Artifacts, damaged: bytes, told: str) -> None:
    stored = artifacts.put(NAME, MEGABYTE)
    place.overwrite(NAME, damaged)
    with pytest.raises(DamagedArtifactError, match=told) as refused:
        artifacts.get(stored)
    assert f"{artifacts.address}/{NAME}" in str(refused.value)
    assert_one_sentence(str(refused.value))


def test_another_noted_size_is_told(artifacts: Artifacts) -> None:
    stored = artifacts.put(NAME, b"content")
    with pytest.raises(DamagedArtifactError, match="7 bytes; 8 were written"):
        artifacts.get(replace(stored, size=8))


def test_a_removed_file_is_gone_and_its_neighbour_stays(artifacts: Artifacts) -> None:
    stored, neighbour = artifacts.put(NAME, b"content"), artifacts.put(BESIDE, b"neighbour")
    artifacts.remove(NAME)
    with pytest.raises(MissingArtifactError):
        artifacts.get(stored)
    assert artifacts.get(neighbour) == b"neighbour"


def test_removing_leaves_nothing_and_can_be_repeated(place: Place, artifacts: Artifacts) -> None:
    artifacts.remove(NAME)
    artifacts.put(NAME, b"content")
    artifacts.remove(NAME)
    artifacts.remove(NAME)
    assert place.names() == set()


def test_a_name_that_leads_elsewhere_is_refused(place: Place, artifacts: Artifacts) -> None:
    for name in BAD_NAMES:
        for refused in (
            lambda name: artifacts.put(name, b""),
            lambda name: artifacts.get(Stored(name, "0" * 64, 0)),
            artifacts.remove,
        ):
            with pytest.raises(ValueError, match="no name of a stored file"):
                refused(name)
    assert place.names() == set()


def test_the_files_of_a_folder_are_named(place: Place, artifacts: Artifacts) -> None:
    kept = {NAME, BESIDE, "lr_batch-1a2b3c4d/weights"}
    for name in (*kept, "lr_batch-1a2b3c4d5/weights", "vgg_depth-1a2b3c4d/weights"):
        artifacts.put(name, b"")
    assert artifacts.names("lr_batch-1a2b3c4d") == sorted(kept)
    assert artifacts.names("lr_batch-1a2b3c4d/trial-0007") == sorted({NAME, BESIDE})
    assert artifacts.names("lr_batch") == []
    with pytest.raises(ValueError, match="no name of a stored file"):
        artifacts.names("..")


def test_what_cannot_be_a_name_is_not_named(place: Place, artifacts: Artifacts) -> None:
    """What people, and the web pages of S3, leave there."""
    artifacts.put(NAME, b"")
    place.overwrite("lr_batch-1a2b3c4d/a\\b", b"")
    if artifacts.root is None:
        place.overwrite("lr_batch-1a2b3c4d/", b"")
    assert artifacts.names("lr_batch-1a2b3c4d") == [NAME]


def test_a_name_may_have_dots_and_spaces(artifacts: Artifacts) -> None:
    stored = artifacts.put("a..b/.c d/é.bin", b"content")
    assert artifacts.get(stored) == b"content"


def test_threads_that_put_one_name_leave_one_whole_file(place: Place, artifacts: Artifacts) -> None:
    contents = [bytes([number]) * (1_000_000 + number) for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        stored = list(pool.map(lambda content: artifacts.put(NAME, content), contents * 5))
    whole = 0
    for one in set(stored):
        try:
            whole += artifacts.get(one) in contents
        except DamagedArtifactError:
            continue
    assert whole == 1
    assert {name for name in place.names() if "." in name} == {NAME}


# A folder


@pytest.fixture
def folder(tmp_path: Path) -> Artifacts:
    return open_artifacts(str(tmp_path / "artifacts"))


def test_nothing_is_made_when_a_folder_is_opened(tmp_path: Path) -> None:
    open_artifacts("artifacts")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_artifacts("artifacts")
    stored = opened.put(NAME, b"content")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened.shown == "artifacts"
    assert opened.address == str(tmp_path / "artifacts")
    assert opened.get(stored) == open_artifacts(opened.address).get(stored) == b"content"
    assert opened.root == tmp_path / "artifacts"
    opened.put(BESIDE, b"beside")
    opened.remove(NAME)
    assert {path.name for path in (tmp_path / "artifacts").rglob("*.safetensors")} == {Path(BESIDE).name}


def test_the_folder_itself_stays(folder: Artifacts) -> None:
    folder.put("weights", b"")
    folder.remove("weights")
    folder.put(NAME, b"")
    folder.remove(NAME)
    assert folder.root is not None
    assert folder.root.is_dir()


def test_a_folder_that_holds_another_file_stays(folder: Artifacts) -> None:
    folder.put(NAME, b"")
    folder.put("lr_batch-1a2b3c4d/trial-0008/weights", b"")
    folder.remove(NAME)
    assert Place(folder).names() == {
        "lr_batch-1a2b3c4d",
        "lr_batch-1a2b3c4d/trial-0008",
        "lr_batch-1a2b3c4d/trial-0008/weights",
    }


def test_a_folder_in_place_of_the_file_is_in_nobodys_way(folder: Artifacts) -> None:
    folder.put(f"{NAME}/inner", b"")
    folder.remove(NAME)
    assert f"{NAME}/inner" in Place(folder).names()


def full_disk(_file: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_behind(folder: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskError, match="No space left on device") as refused:
        folder.put(NAME, MEGABYTE)
    assert f"{folder.address}/{NAME}:" in str(refused.value)
    assert_one_sentence(str(refused.value))
    assert Place(folder).names() == set()


def test_a_full_disk_leaves_what_stood_there(folder: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = folder.put(NAME, b"before")
    before = Place(folder).names()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskError):
        folder.put(NAME, MEGABYTE)
    assert folder.get(stored) == b"before"
    assert Place(folder).names() == before


def test_a_file_that_cannot_take_its_place_leaves_nothing_behind(folder: Artifacts) -> None:
    folder.put(f"{NAME}/inner", b"")
    before = Place(folder).names()
    with pytest.raises(DiskError, match="directory") as refused:
        folder.put(NAME, MEGABYTE)
    assert_one_sentence(str(refused.value))
    assert Place(folder).names() == before


def test_a_file_that_cannot_be_read_is_told(folder: Artifacts) -> None:
    folder.put(f"{NAME}/inner", b"")
    with pytest.raises(DiskError, match="could not be read: Is a directory") as refused:
        folder.get(Stored(NAME, "0" * 64, 1))
    assert_one_sentence(str(refused.value))


def test_a_folder_that_cannot_be_listed_is_told(folder: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(NAME, b"")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DiskError, match="could not be listed: Permission denied") as refused:
        folder.names("lr_batch-1a2b3c4d")
    assert f"{folder.address}/lr_batch-1a2b3c4d:" in str(refused.value)
    assert_one_sentence(str(refused.value))


def test_what_a_killed_writer_left_is_named_and_can_be_removed(
    folder: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        folder.put(NAME, MEGABYTE)
    left = folder.names("lr_batch-1a2b3c4d")
    assert len(left) == 1
    folder.remove(left[0])
    assert Place(folder).names() == set()


def test_a_folder_removed_in_the_middle_of_writing_is_made_again(
    folder: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, removed = Path.mkdir, []

    def make_then_lose(path: Path, *arguments: Any, **options: Any) -> None:
        make(path, *arguments, **options)
        if path.name == "trial-0007" and len(removed) < 2:
            path.rmdir()
            removed.append(path)

    monkeypatch.setattr(Path, "mkdir", make_then_lose)
    assert folder.get(folder.put(NAME, b"content")) == b"content"
    assert len(removed) == 2


def test_a_folder_that_cannot_be_made_is_told(folder: Artifacts) -> None:
    folder.put("lr_batch-1a2b3c4d", b"a file")
    with pytest.raises(DiskError, match="could not be written") as refused:
        folder.put(NAME, b"")
    assert f"{folder.address}/{NAME}:" in str(refused.value)
    assert_one_sentence(str(refused.value))


PUT_AGAIN_AND_AGAIN = """
import sys
from cifar_sweep.artifacts import open_artifacts
folder = open_artifacts(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(50):
    folder.put("trial/weights", sys.argv[2].encode() * 200_000)
"""


@pytest.mark.slow
def test_processes_that_put_one_name_leave_one_whole_file(folder: Artifacts) -> None:
    command = [sys.executable, "-c", PUT_AGAIN_AND_AGAIN, folder.address]
    writers = [
        subprocess.Popen([*command, letter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for letter in "ab"
    ]
    whole = {b"a" * 200_000, b"b" * 200_000}
    folder.put("trial/weights", b"a" * 200_000)
    path = Path(folder.address, "trial/weights")
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        writer.stdin.write("\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        assert path.read_bytes() in whole
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert path.read_bytes() in whole
    assert Place(folder).names() == {"trial", "trial/weights"}


def test_two_machines_may_share_a_process_id(folder: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers on one volume are both process 1: the second is killed while the first writes the same name."""
    sync, other = os.fsync, open_artifacts(folder.address)

    def kill(_file: int) -> None:
        raise KeyboardInterrupt

    def let_the_other_write(file: int) -> None:
        monkeypatch.setattr(os, "fsync", kill)
        with pytest.raises(KeyboardInterrupt):
            other.put(NAME, b"other")
        sync(file)

    monkeypatch.setattr(os, "fsync", let_the_other_write)
    assert folder.get(folder.put(NAME, b"mine, and longer")) == b"mine, and longer"


# S3


def refusals_of(address: str) -> list[str]:
    """What is said where files can be neither written nor read nor listed; removing says nothing."""
    opened = open_artifacts(address)
    opened.remove(NAME)
    with pytest.raises(DiskError, match="could not be written") as put:
        opened.put(NAME, b"content")
    with pytest.raises(DiskError, match="could not be read") as got:
        opened.get(Stored(NAME, "0" * 64, 1))
    with pytest.raises(DiskError, match="could not be listed") as listed:
        opened.names(str(Path(NAME).parent))
    refusals = [str(put.value), str(got.value), str(listed.value)]
    for refusal in refusals:
        assert f"{address}/{Path(NAME).parent}" in refusal
        assert_one_sentence(refusal)
    return refusals


@pytest.mark.parametrize(
    ("address", "key", "shown"),
    [
        ("s3://lab", NAME, "s3://lab"),
        ("s3://lab/", NAME, "s3://lab"),
        ("s3://lab/sweeps", f"sweeps/{NAME}", "s3://lab/sweeps"),
        ("s3://lab/sweeps/mine/", f"sweeps/mine/{NAME}", "s3://lab/sweeps/mine"),
    ],
)
def test_a_key_is_prefix_and_name(bucket: Any, address: str, key: str, shown: str) -> None:
    opened = open_artifacts(address)
    opened.put(NAME, b"content")
    assert keys_in_bucket(bucket) == [key]
    assert opened.shown == opened.address == shown
    assert opened.root is None
    opened.remove(NAME)
    assert keys_in_bucket(bucket) == []


def test_more_files_than_one_answer_holds_are_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    opened = open_artifacts("s3://lab")
    names = [opened.put(f"trial/{number}", b"").name for number in range(5)]
    assert opened.names("trial") == names


def test_a_bit_flipped_at_rest_is_told(bucket: Any) -> None:
    """The server still sends the checksum that it noted, so that boto3 sees the damage before we do."""
    from moto.s3.models import s3_backends

    opened = open_artifacts("s3://lab")
    stored = opened.put(NAME, b"content")
    backend = s3_backends["123456789012"]["aws"]
    backend.buckets["lab"].keys[NAME].value = b"cOntent"
    with pytest.raises(DamagedArtifactError, match="checksum") as refused:
        opened.get(stored)
    assert_one_sentence(str(refused.value))


def test_a_missing_bucket_is_told(amazon: None) -> None:
    for refusal in refusals_of("s3://nobodys/sweeps"):
        assert "there is no such bucket" in refusal


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody listens on, and that nobody else is given."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_unreachable_endpoint_is_told(amazon: None, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    for refusal in refusals_of("s3://lab"):
        assert f"127.0.0.1:{closed_port} does not answer" in refusal


@pytest.mark.slow
def test_a_silent_endpoint_is_told(amazon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_sweep.artifacts.READ_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for refusal in refusals_of("s3://lab"):
            assert "does not answer (ReadTimeoutError)" in refusal


def test_missing_credentials_are_told(amazon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for refusal in refusals_of("s3://lab"):
        assert "there are no credentials" in refusal


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("AccessDenied", "access is denied (AccessDenied)"),
        ("SignatureDoesNotMatch", "the secret key does not fit the access key (SignatureDoesNotMatch)"),
        ("SlowDown", "refused (SlowDown)"),
    ],
)
def test_a_refusal_of_the_server_is_told(bucket: Any, code: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.s3.exceptions import S3ClientError
    from moto.s3.models import S3Backend

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise S3ClientError(code, f"No. Not with {SECRET}.")

    with monkeypatch.context() as patched:
        for name in ("put_object", "get_object", "delete_object", "list_objects"):
            patched.setattr(S3Backend, name, refuse)
        refusals = refusals_of("s3://lab")
    for refusal in refusals:
        assert told in refusal


def test_a_hiccup_is_waited_out(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.s3.exceptions import S3ClientError
    from moto.s3.models import S3Backend

    put, refused = S3Backend.put_object, []

    def put_the_second_time(*arguments: Any, **options: Any) -> Any:
        if not refused:
            refused.append(True)
            raise S3ClientError("SlowDown", "Not now.")
        return put(*arguments, **options)

    monkeypatch.setattr(S3Backend, "put_object", put_the_second_time)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    opened = open_artifacts("s3://lab")
    assert opened.get(opened.put(NAME, b"content")) == b"content"
    assert refused


def test_a_secret_in_boto3s_words_is_not_repeated(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session token that was read with its line end does not fit in a header, and urllib3 says so, with the token."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\nline")
    for refusal in refusals_of("s3://lab"):
        assert "HTTPClientError" in refusal


def test_opening_asks_the_server_for_nothing(amazon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        open_artifacts("s3://lab/sweeps")
        with pytest.raises(TimeoutError):
            listening.accept()


def client_of(address: str) -> Any:
    return open_artifacts(address).place.client  # type: ignore[union-attr]


def test_the_client_is_patient(amazon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    config = client_of("s3://lab").meta.config
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}
    assert (config.connect_timeout, config.read_timeout) == (10, 60)


@pytest.mark.slow
def test_the_user_may_say_how_often_to_try(amazon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert client_of("s3://lab").meta.config.retries["total_max_attempts"] == 9


# What is refused


def refusal_to_open(address: str) -> str:
    with pytest.raises(UsageError) as refused:
        open_artifacts(address)
    assert_one_sentence(str(refused.value))
    return str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "gs://bucket/prefix",
        "file:///some/folder",
        "https://bucket.s3.amazonaws.com/prefix",
        "S3://bucket",
        "s3:bucket",
        "s3:/bucket",
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://b ucket",
        "s3://bucket//prefix",
        "s3://bucket/../prefix",
        "s3://bucket/prefix?region=x",
        f"s3://bucket?secret={SECRET}",
        f"s3://user:{SECRET}@bucket/prefix",
        f"s3://user:{SECRET}/part@bucket",
        f"s3://{SECRET}@bucket",
        f"https://user:{SECRET}@host/bucket",
        f"user:{SECRET}@bucket/prefix",
    ],
    ids=lambda address: address.replace(SECRET, "SECRET"),
)
def test_a_malformed_address_is_refused(tmp_path: Path, address: str) -> None:
    assert "accepted: a folder, or s3://BUCKET/PREFIX." in refusal_to_open(address)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("")
    assert "'artifacts' is no folder" in refusal_to_open("artifacts")


def test_a_missing_boto3_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert "`pip install cifar-sweep[s3]`" in refusal_to_open("s3://lab")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", f"user:{SECRET}", "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9000", "AWS_ENDPOINT_URL holds no credentials"),
        ("AWS_MAX_ATTEMPTS", "often", "AWS_MAX_ATTEMPTS"),
        ("AWS_PROFILE", "nobodys", "nobodys"),
        ("AWS_SECRET_ACCESS_KEY", None, "missing: AWS_SECRET_ACCESS_KEY"),
        ("AWS_DEFAULT_REGION", "no region!", "InvalidRegionError"),
    ],
)
def test_a_wrong_setting_of_boto3_is_told(
    amazon: None, variable: str, value: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    assert told in refusal_to_open("s3://lab")


# What is loaded


@pytest.mark.parametrize(
    ("opened", "loaded"), [("artifacts", set()), pytest.param("s3://lab", {"boto3"}, id="boto3 for S3 alone")]
)
def test_opening_loads_nothing_that_it_does_not_need(amazon: None, opened: str, loaded: set[str]) -> None:
    script = f"""
import sys
from cifar_sweep.artifacts import open_artifacts
open_artifacts({opened!r})
print(*({{"optuna", "boto3", "torch"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == loaded


# A sweep


@pytest.mark.slow
def test_a_sweep_keeps_its_files_in_a_bucket(bucket: Any, tiny_sweep: Path, cli: Any) -> None:
    submitted = cli("submit", "tiny.toml", "--data", "synthetic:500", "--trials", 2, "--artifacts", "s3://lab/sweeps")
    assert submitted.exit_code == 0, submitted.err
    assert "checkpoints and weights go to s3://lab/sweeps" in submitted.out
    worked = cli("worker", "--until-idle", "--workers", 1, "--threads", 1)
    assert worked.exit_code == 0, worked.err
    keys = keys_in_bucket(bucket)
    assert [key.split("/")[0] for key in keys] == ["sweeps"] * 2
    assert [key.split("/")[3][:8] for key in keys] == ["weights-"] * 2, "checkpoints of finished trials are gone"
    assert not Path("artifacts").exists()
    exported = cli("export", "tiny", "--out", "out")
    assert exported.exit_code == 0, exported.err
    assert cli("delete", "tiny", "--yes").exit_code == 0
    assert keys_in_bucket(bucket) == []
