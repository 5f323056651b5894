"""The dashboard answers on a study after a run: on this machine only, and for reading unless writes are allowed."""

import http.client
import io
import json
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.dashboard.server import application
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.storage import open_storage
from cifar_sweep.sweep.parsing import parse
from tests.servers import PostgresServer

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1, "--trials", 2)


@pytest.fixture
def dashboard(tiny_sweep: Path, cli: Any, start: Any) -> Any:
    """The port of a running dashboard on a study with two trials, and its process."""
    assert cli(*RUN).exit_code == 0
    process = start("dashboard", "--port", 0)
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/dashboard/", line)
    assert found, line
    return int(found.group(1)), process


def asked(port: int, method: str, path: str, *, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = None if body is None else json.dumps(body)
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, body=content, headers=kind | headers)
    response = connection.getresponse()
    content_back = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), content_back


def ask(port: int, method: str, path: str, *, host: str | None = None) -> tuple[int, bytes]:
    status, _, content = asked(port, method, path, **({"Host": host} if host else {}))
    return status, content


def study_of(port: int) -> Any:
    """The only study, as its page gets it."""
    [study] = json.loads(ask(port, "GET", "/api/studies")[1])["study_summaries"]
    return json.loads(ask(port, "GET", f"/api/studies/{study['study_id']}")[1]) | {"id": study["study_id"]}


def download(port: int, trial: Any) -> str:
    """The address of a trial's only file."""
    [file] = trial["artifacts"]
    return f"/artifacts/{trial['study_id']}/{trial['trial_id']}/{file['artifact_id']}"


def test_it_shows_the_study_and_changes_nothing(dashboard: Any, cli: Any) -> None:
    port, process = dashboard
    status, page = ask(port, "GET", "/dashboard/")
    assert status == 200
    assert b"<html" in page.lower()
    status, body = ask(port, "GET", "/api/studies")
    assert status == 200
    [study] = json.loads(body)["study_summaries"]
    assert study["study_name"] == "tiny"
    status, body = ask(port, "GET", f"/api/studies/{study['study_id']}")
    trials = json.loads(body)["trials"]
    assert [trial["state"] for trial in trials] == ["Complete", "Complete"]
    assert trials[0]["params"][0]["name"] == "learning_rate"

    for method in ("DELETE", "POST", "PUT", "PATCH"):
        assert ask(port, method, f"/api/studies/{study['study_id']}")[0] == 403
    assert ask(port, "GET", "/api/studies", host="evil.example")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"localhost:{port}")[0] == 200
    assert len(json.loads(cli("status", "--json").out)["studies"]) == 1

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == ""


@pytest.mark.slow
def test_a_port_in_use(dashboard: Any, cli: Any) -> None:
    port, _ = dashboard
    finished = cli("dashboard", "--port", port)
    assert finished.exit_code == 1
    assert finished.err.startswith(f"error: port {port} on 127.0.0.1 cannot be used: ")
    assert finished.err.count("\n") == 1


@pytest.mark.slow
def test_elsewhere_than_on_this_machine_it_needs_a_token(
    tiny_sweep: Path, cli: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*RUN).exit_code == 0
    refused = cli("dashboard", "--host", "0.0.0.0", "--port", 0)
    assert refused.exit_code == 2
    assert "accepted: 127.0.0.1, or a token of 8 characters or more in CIFAR_SWEEP_TOKEN." in refused.err
    monkeypatch.setenv("CIFAR_SWEEP_TOKEN", "open-sesame")
    process = start("dashboard", "--host", "0.0.0.0", "--port", 0)
    port = int(re.search(r":(\d+)/dashboard/", process.stdout.readline())[1])

    def status(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.getheader("Set-Cookie") or ""

    assert status("/api/studies")[0] == 403
    assert status("/api/studies?token=open-sesam")[0] == 403
    assert status("/api/studies", Authorization="Bearer wrong")[0] == 403
    assert status("/api/studies", Cookie="cifar_sweep_token=wrong")[0] == 403
    code, cookie = status("/api/studies?token=open-sesame")
    assert code == 303
    assert "HttpOnly" in cookie
    assert status("/api/studies", Cookie=cookie.partition(";")[0])[0] == 200
    assert status("/api/studies", Authorization="Bearer open-sesame")[0] == 200
    assert status("/api/studies/1", "DELETE", Authorization="Bearer open-sesame")[0] == 403
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert "open-sesame" not in out + err


@pytest.mark.slow
def test_kept_weights_are_downloaded_as_they_are_stored(dashboard: Any, tmp_path: Path) -> None:
    port, _ = dashboard
    for trial in study_of(port)["trials"]:
        status, headers, content = asked(port, "GET", download(port, trial))
        [stored] = (tmp_path / "artifacts").glob(f"*/trial-{trial['number']:04d}/weights-*.safetensors")
        assert (status, content) == (200, stored.read_bytes())
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Disposition"] == f'attachment; filename="tiny-{trial["number"]}-weights.safetensors"'
        assert headers["Content-Security-Policy"].endswith("sandbox")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "private, no-cache"
        assert not {"Access-Control-Allow-Origin", "Content-Encodings"} & set(headers)
        again = asked(port, "GET", download(port, trial), **{"If-None-Match": headers["ETag"]})
        assert (again[0], again[2]) == (304, b"")
        head = asked(port, "HEAD", download(port, trial))
        assert (head[0], head[1]["Content-Length"], head[2]) == (200, str(len(content)), b"")


@pytest.mark.slow
def test_a_file_that_is_missing_or_damaged_is_said_to_be(dashboard: Any, tmp_path: Path) -> None:
    port, process = dashboard
    first, second = study_of(port)["trials"]
    [missing] = (tmp_path / "artifacts").glob("*/trial-0000/weights-*.safetensors")
    [damaged] = (tmp_path / "artifacts").glob("*/trial-0001/weights-*.safetensors")
    missing.unlink()
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert ask(port, "GET", download(port, first)) == (404, f"{missing}: there is no such file.".encode())
    words = f"{damaged}: the file's checksum is not that of what was written."
    assert ask(port, "GET", download(port, second)) == (500, words.encode())
    for wrong in ("0" * 32, "../" * 4 + "etc/passwd", "", "x"):
        path = download(port, first).rpartition("/")[0] + f"/{wrong}"
        assert ask(port, "GET", path) == (404, b"this file is not kept, or not any more.")
    other = f"/artifacts/{second['study_id']}/{second['trial_id']}/{first['artifacts'][0]['artifact_id']}"
    assert ask(port, "GET", other)[0] == 404, "of another trial"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[1].splitlines() == [words], "and nothing else"


@pytest.mark.slow
def test_writes_where_they_are_allowed(tiny_sweep: Path, cli: Any, start: Any, tmp_path: Path) -> None:
    assert cli(*RUN).exit_code == 0
    process = start("dashboard", "--port", 0, "--allow-write")
    port = int(re.search(r":(\d+)/dashboard/", process.stdout.readline())[1])
    study = study_of(port)
    path = f"/api/studies/{study['id']}"
    own, foreign = {"Origin": f"http://127.0.0.1:{port}"}, {"Origin": "http://evil.example"}

    edited = {"version": 1, "body": study["note"]["body"] + "\n\nmine"}
    assert asked(port, "PUT", f"{path}/note", body=edited, **foreign)[0] == 403
    assert study_of(port)["note"] == study["note"]
    assert asked(port, "PUT", f"{path}/note", body=edited, **own)[0] == 204
    assert study_of(port)["note"] == edited
    assert asked(port, "PUT", f"{path}/note", body=edited, **own)[0] == 409, "somebody else has written since"

    assert asked(port, "POST", f"{path}/rename", body={"study_name": "new"}, **own)[0] == 403
    assert asked(port, "DELETE", path, **own, Host="evil.example")[0] == 403
    assert asked(port, "DELETE", path, **foreign)[0] == 403
    assert asked(port, "DELETE", path, **own, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert [each["name"] for each in json.loads(cli("status", "--json").out)["studies"]] == ["tiny"]
    assert list((tmp_path / "artifacts").glob("*/*/weights-*"))
    assert asked(port, "DELETE", path, body={"remove_associated_artifacts": True}, **own)[0] == 204
    assert json.loads(ask(port, "GET", "/api/studies")[1])["study_summaries"] == []
    assert list((tmp_path / "artifacts").glob("*/*")) == []
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[1] == ""


@pytest.mark.slow
def test_a_database_that_is_away_for_a_while(
    own_postgres: PostgresServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_storage(own_postgres.url)) as storage:
        sweep = parse({"name": "s", "fixed": {"epochs": 1}}, where="test")
        open_or_resume(storage, name, sweep, data={"name": "pictures", "fingerprint": "abc", "classes": 10})
        app = application(storage)

        def status_of(path: str) -> int:
            started: list[str] = []
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "HTTP_HOST": "localhost", "wsgi.input": io.BytesIO()}
            b"".join(app(environ, lambda status, *_: started.append(status)))
            return int(started[0][:3])

        assert status_of("/api/studies") == 200
        own_postgres.stop()
        for path in ("/api/studies", "/api/studies/1", "/artifacts/1/1/" + "0" * 32):
            caplog.clear()
            assert status_of(path) == 503
            *others, line = sorted(caplog.messages, key=lambda message: message.startswith("dashboard: "))
            assert line.startswith("dashboard: ")
            assert "\n" not in line
            # Once in a process.
            assert all(other.startswith("the server has ended a connection") for other in others)
        own_postgres.start()
        answers = [status_of("/api/studies/1") for _ in range(5)]
        assert answers[-1] == 200, "the first ones may have a dead connection"
