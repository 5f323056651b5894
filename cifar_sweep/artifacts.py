"""Where a sweep's files lie: a folder, or an S3 address, over Optuna's artifact stores.

What Optuna's stores leave to us: the one for folders makes none and leaves half a file where the disk is full, so ours
writes beside and renames; neither notices a file that is cut short or damaged, so a file's size and checksum are noted
when it is written, and verified when it is read. Optuna and boto3 are loaded when an address is opened, not before.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from cifar_sweep.errors import DiskError, UsageError
from cifar_sweep.files import replace_file

ACCEPTED = "a folder, or s3://BUCKET/PREFIX"
OWN_WAYS = "boto3 finds them in the environment, in ~/.aws, or by the instance's role"
CONNECT_SECONDS = 10
READ_SECONDS = 60
REQUEST_ATTEMPTS = 5  # where AWS_MAX_ATTEMPTS says nothing else
FOLDER_ATTEMPTS = 5
REFUSALS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access is denied",
    "403": "access is denied",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "ExpiredToken": "the session token has expired",
}


class MissingArtifactError(Exception):
    """There is no such file."""


class DamagedArtifactError(Exception):
    """A file's size or checksum is not the one noted when it was written."""


@dataclass(frozen=True)
class Stored:
    """A file in a store, as the database remembers it: its name, its SHA-256 in hex, and its size in bytes."""

    name: str
    sha256: str
    size: int


class Store(Protocol):
    """What Optuna's artifact stores have in common, and the names of what ours hold."""

    def open_reader(self, artifact_id: str) -> BinaryIO: ...
    def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...
    def remove(self, artifact_id: str) -> None: ...
    def names(self, folder: str) -> list[str]: ...


@dataclass(frozen=True)
class Artifacts:
    """An open address for files.

    Attributes:
        shown: the address for people; it never holds credentials.
        address: the address that a worker elsewhere finds the same files by; of a folder the absolute path.
        store: the Optuna artifact store.
        root: the folder; None for S3.
    """

    shown: str
    address: str
    store: Store
    root: Path | None

    def put(self, name: str, content: bytes) -> Stored:
        """Write a file whole or not at all, in place of one of the same name.

        Raises:
            ValueError: the name is not relative, or leads out of the store.
            DiskError: the file could not be written; what stood there before still stands.
        """
        self.store.write(_checked(name), BytesIO(content))
        return Stored(name, hashlib.sha256(content).hexdigest(), len(content))

    def get(self, stored: Stored) -> bytes:
        """A file's content, exactly as it was put.

        Raises:
            ValueError: the name is not relative, or leads out of the store.
            MissingArtifactError: there is no such file.
            DamagedArtifactError: its size or checksum is not the noted one.
            DiskError: it could not be read.
        """
        from optuna.artifacts.exceptions import ArtifactNotFound

        where = f"{self.address}/{stored.name}"
        try:
            with closing(self.store.open_reader(_checked(stored.name))) as file:
                content = file.read()
        except ArtifactNotFound:
            raise MissingArtifactError(f"{where}: there is no such file.") from None
        except OSError as error:
            raise DiskError(f"{where}: the file could not be read: {error.strerror or error}.") from error
        if len(content) != stored.size:
            raise DamagedArtifactError(f"{where}: the file has {len(content)} bytes; {stored.size} were written.")
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise DamagedArtifactError(f"{where}: the file's checksum is not that of what was written.")
        return content

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there, or that cannot be removed, is in nobody's way.

        Raises:
            ValueError: the name is not relative, or leads out of the store.
        """
        from optuna.artifacts.exceptions import ArtifactNotFound

        with suppress(ArtifactNotFound, OSError, DiskError):
            self.store.remove(_checked(name))

    def names(self, folder: str) -> list[str]:
        """The names of all files in a folder of the store and below it; what a killed writer left is among them.

        Raises:
            ValueError: the folder's name is not relative, or leads out of the store.
            DiskError: they could not be listed.
        """
        return sorted(name for name in self.store.names(_checked(folder)) if _is_name(name))

    def path(self, name: str) -> Path | None:
        """Where the file lies in the folder; None for S3.

        Raises:
            ValueError: the name is not relative, or leads out of the store.
        """
        return None if self.root is None else self.root / _checked(name)


def open_artifacts(address: str) -> Artifacts:
    """The files at an address. Nothing is written, and nothing asked of S3, before the first file.

    Args:
        address: a folder, which need not exist, or ``s3://BUCKET/PREFIX``. Credentials come from boto3's own places;
            ``AWS_ENDPOINT_URL`` names another server that speaks S3.

    Returns:
        The files; they cannot be sent to another process, but their `address` can.

    Raises:
        UsageError: the address is neither, or holds credentials; boto3 is missing or set up wrongly.
    """
    if re.match(r"([^/]*://)?[^/]*:[^/]*@", address):
        raise UsageError(f"artifacts: an address holds no credentials ({OWN_WAYS}); accepted: {ACCEPTED}.")
    scheme = re.match(r"[a-z][a-z0-9+.-]*://|s3:", address, re.IGNORECASE)
    if scheme is None:
        return _open_folder(address)
    if address.startswith("s3://"):
        return _open_bucket(address.removeprefix("s3://"))
    raise UsageError(f"artifacts: not an address of a known kind ({scheme[0]}); accepted: {ACCEPTED}.")


def _is_name(name: str) -> bool:
    return not ({"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name)


def _checked(name: str) -> str:
    if not _is_name(name):
        raise ValueError(f"{name!r} is no name of a stored file; accepted: a relative one, without ..")
    return name


# A folder


def _open_folder(address: str) -> Artifacts:
    root = Path(address).absolute()
    if not address or (os.path.exists(root) and not os.path.isdir(root)):
        raise UsageError(f"artifacts: {address!r} is no folder; accepted: {ACCEPTED}.")
    return Artifacts(address, str(root), _folder_store(root), root)


def _folder_store(root: Path) -> Store:
    from optuna.artifacts import FileSystemArtifactStore

    class FolderStore(FileSystemArtifactStore):
        """Optuna's store, whose files are whole or not there, and whose empty folders go."""

        def write(self, artifact_id: str, content_body: BinaryIO) -> None:
            path = root / _checked(artifact_id)
            try:
                _write_among_others(path, content_body.read())
            except DiskError:
                _remove_empty_folders(path, root)
                raise

        def remove(self, artifact_id: str) -> None:
            super().remove(artifact_id)
            _remove_empty_folders(root / artifact_id, root)

        def names(self, folder: str) -> list[str]:
            below = os.walk(root / folder, onerror=_raise_unless_gone)
            return [Path(inner, file).relative_to(root).as_posix() for inner, _, files in below for file in files]

    return FolderStore(root)


def _write_among_others(path: Path, content: bytes) -> None:
    """Write a file, again where another process removed the folder, empty for a moment, before the file was in it."""
    for left in reversed(range(FOLDER_ATTEMPTS)):
        try:
            replace_file(path, content)
            break
        except DiskError as error:
            if not (isinstance(error.__cause__, FileNotFoundError | FileExistsError) and left):
                raise


def _remove_empty_folders(path: Path, root: Path) -> None:
    """Remove the folders between a file and the root that hold nothing."""
    with suppress(OSError):  # it holds something, or another process was faster
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder).rmdir()


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # another process may remove a folder in the meantime
        raise DiskError(f"{error.filename}: the folder could not be listed: {error.strerror or error}.") from error


# S3


def _open_bucket(rest: str) -> Artifacts:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    # An address that is refused is not shown: what is wrong with it may be a secret.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", bucket):
        raise UsageError(f"artifacts: the S3 address names no bucket; accepted: {ACCEPTED}.")
    if prefix and ({"", ".", ".."} & set(prefix.split("/")) or re.search(r"[?#\\\x00-\x1f\x7f]", prefix)):
        raise UsageError(f"artifacts: the S3 address has a malformed prefix; accepted: {ACCEPTED}.")
    address = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
    return Artifacts(address, address, _bucket_store(bucket, prefix, _s3_client()), None)


def _s3_client() -> Any:
    """A client with boto3's own credentials and endpoint, with patience for a slow network."""
    try:
        import boto3  # type: ignore[import-untyped, import-not-found, unused-ignore]
        import botocore.session  # type: ignore[import-untyped, import-not-found, unused-ignore]
        from botocore.config import Config  # type: ignore[import-untyped, import-not-found, unused-ignore]
        from botocore.exceptions import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
            BotoCoreError,
            ConfigParseError,
            PartialCredentialsError,
            ProfileNotFound,
        )
    except ImportError:
        raise UsageError("artifacts: an S3 address needs boto3: `pip install cifar-sweep[s3]`.") from None

    try:
        session = botocore.session.get_session()
        attempts = session.get_config_variable("max_attempts") or REQUEST_ATTEMPTS
        patience = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        )
        client = boto3.Session(botocore_session=session).client("s3", config=patience)
    except (ProfileNotFound, PartialCredentialsError, ConfigParseError) as error:
        raise UsageError(f"artifacts: boto3 is set up wrongly: {str(error).rstrip('.')}.") from None
    except BotoCoreError as error:  # among its words may be what a credential program printed
        raise UsageError(f"artifacts: boto3 is set up wrongly: {type(error).__name__}.") from None
    except ValueError:  # its words repeat the setting, which may hold a password
        raise UsageError("artifacts: AWS_ENDPOINT_URL or AWS_MAX_ATTEMPTS is malformed.") from None
    if urlsplit(client.meta.endpoint_url).username is not None:
        raise UsageError(f"artifacts: AWS_ENDPOINT_URL holds no credentials ({OWN_WAYS}).")
    return client


def _bucket_store(bucket: str, prefix: str, client: Any) -> Store:
    from optuna.artifacts import Boto3ArtifactStore

    def key(name: str) -> str:
        return f"{prefix}/{name}" if prefix else name

    def explained(name: str, what: str) -> Any:
        return _explained(f"s3://{bucket}/{key(name)}: {what}", client)

    class BucketStore(Boto3ArtifactStore):
        """Optuna's store with a prefix, whose errors are one sentence."""

        def open_reader(self, artifact_id: str) -> BinaryIO:
            with (
                explained(artifact_id, "the file could not be read"),
                closing(super().open_reader(key(artifact_id))) as body,
            ):
                return BytesIO(body.read())

        def write(self, artifact_id: str, content_body: BinaryIO) -> None:
            with explained(artifact_id, "the file could not be written"):
                super().write(key(artifact_id), content_body)

        def remove(self, artifact_id: str) -> None:
            with explained(artifact_id, "the file could not be removed"):
                super().remove(key(artifact_id))

        def names(self, folder: str) -> list[str]:
            with explained(folder, "the files could not be listed"):
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key(f"{folder}/"))
                return [found["Key"][len(key("")) :] for page in pages for found in page.get("Contents", [])]

    return BucketStore(bucket, client)


@contextmanager
def _explained(what: str, client: Any) -> Iterator[None]:
    """Turn boto3's errors into a DiskError of one sentence, without its words, which may repeat a secret."""
    from botocore.exceptions import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        BotoCoreError,
        ClientError,
        FlexibleChecksumError,
    )
    from optuna.artifacts.exceptions import ArtifactNotFound

    try:
        yield
    except ArtifactNotFound as error:
        # Optuna takes every 404 for a missing file.
        if isinstance(error.__cause__, ClientError) and _code(error.__cause__) == "NoSuchBucket":
            raise DiskError(f"{what}: {REFUSALS['NoSuchBucket']}.") from None
        raise
    except FlexibleChecksumError:
        raise DamagedArtifactError(f"{what}: it does not fit the checksum that S3 keeps of it.") from None
    except (BotoCoreError, ClientError) as error:
        raise DiskError(f"{what}: {_reason(error, urlsplit(client.meta.endpoint_url).netloc)}.") from None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _reason(error: Exception, host: str) -> str:
    """Why a request failed, without a full stop."""
    from botocore import exceptions  # type: ignore[import-untyped, import-not-found, unused-ignore]

    if isinstance(error, exceptions.ClientError):
        code = _code(error)
        return f"{REFUSALS.get(code, f'{host} refused')} ({code})"
    if isinstance(error, exceptions.NoCredentialsError):
        return f"there are no credentials; {OWN_WAYS}"
    if isinstance(error, exceptions.ConnectionError | exceptions.ReadTimeoutError):
        return f"{host} does not answer ({type(error).__name__})"
    return type(error).__name__
