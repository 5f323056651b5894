"""Where a sweep's files lie: a folder, or an S3 address.

A file is written whole or not at all. A file that is cut short or damaged is noticed: its size and checksum are noted
when it is written, and verified when it is read. boto3 is loaded when an S3 address is opened, not before.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cifar_sweep.errors import DiskError, UsageError
from cifar_sweep.files import expanded, replace_file

ACCEPTED = "a folder, or s3://BUCKET/PREFIX"
OWN_WAYS = "boto3 finds them in the environment, in ~/.aws, or by the instance's role"
CONNECT_SECONDS = 10  # boto3's own 60 would keep a worker waiting for a server that is down
READ_SECONDS = 60  # boto3's own
REQUEST_ATTEMPTS = 5  # where AWS_MAX_ATTEMPTS says nothing else
FOLDER_ATTEMPTS = 5  # a folder is lost only where another process removes it between two system calls
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
    """A file, as the database remembers it: its name, its SHA-256 in hex, and its size in bytes."""

    name: str
    sha256: str
    size: int


class Artifacts:
    """An open address for files.

    A file's name is relative, with ``/`` between its parts, and leads nowhere else; all methods raise ValueError for
    any other name.
    """

    def __init__(self, place: "Folder | Bucket") -> None:
        self.place = place
        self.shown = place.shown  # the address for people; it never holds credentials
        self.address = place.address  # by which a worker elsewhere finds the same files; of a folder the absolute path
        self.root: Path | None = place.root  # the folder; None for S3

    def put(self, name: str, content: bytes) -> Stored:
        """Write a file in place of one of the same name. After a DiskError what stood there before still stands."""
        self.place.write(_checked(name), content)
        return Stored(name, hashlib.sha256(content).hexdigest(), len(content))

    def get(self, stored: Stored) -> bytes:
        """A file's content, exactly as it was put; else MissingArtifactError, DamagedArtifactError, or DiskError."""
        where = f"{self.address}/{stored.name}"
        try:
            content = self.place.read(_checked(stored.name))
        except FileNotFoundError:
            raise MissingArtifactError(f"{where}: there is no such file.") from None
        except OSError as error:
            raise DiskError(f"{where}: the file could not be read: {error.strerror or error}.") from error
        if len(content) != stored.size:
            raise DamagedArtifactError(f"{where}: the file has {len(content)} bytes; {stored.size} were written.")
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise DamagedArtifactError(f"{where}: the file's checksum is not that of what was written.")
        return content

    def remove(self, name: str) -> None:
        """Remove a file. A file that is not there, or that cannot be removed, is no error."""
        with suppress(OSError, DiskError):
            self.place.remove(_checked(name))

    def names(self, folder: str) -> list[str]:
        """The names of all files in a folder and below it, or DiskError; what a killed writer left is among them."""
        return sorted(name for name in self.place.names(_checked(folder)) if _is_name(name))


def open_artifacts(address: str) -> Artifacts:
    """The files at an address: a folder, which need not exist, or ``s3://BUCKET/PREFIX``.

    Nothing is written, and nothing asked of S3, before the first file. Credentials come from boto3's own places;
    ``AWS_ENDPOINT_URL`` names another server that speaks S3. To another process the files' `address` can be sent.
    Raises UsageError where the address is neither, or holds credentials; boto3 is missing or set up wrongly.
    """
    if re.match(r"([^/]*://)?[^/]*:[^/]*@", address):
        raise UsageError(f"artifacts: an address holds no credentials ({OWN_WAYS}); accepted: {ACCEPTED}.")
    if address.startswith("s3://"):
        return Artifacts(Bucket(address))
    if scheme := re.match(r"[a-z][a-z0-9+.-]*://|s3:", address, re.IGNORECASE):
        raise UsageError(f"artifacts: not an address of a known kind ({scheme[0]}); accepted: {ACCEPTED}.")
    return Artifacts(Folder(address))


def _is_name(name: str) -> bool:
    return not ({"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name)


def _checked(name: str) -> str:
    if not _is_name(name):
        raise ValueError(f"{name!r} is no name of a stored file; accepted: a relative one, without ..")
    return name


class Folder:
    """A folder, made with its first file. Folders inside go with their last file."""

    def __init__(self, address: str) -> None:
        self.root = Path(expanded(address)).absolute()
        self.shown, self.address = address, str(self.root)
        if not address or (os.path.exists(self.root) and not os.path.isdir(self.root)):
            raise UsageError(f"artifacts: {address!r} is no folder; accepted: {ACCEPTED}.")

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        for left in reversed(range(FOLDER_ATTEMPTS)):
            try:
                replace_file(self.root / name, content)
                return
            except DiskError as error:
                # Another process may remove a folder that is empty for a moment, before the file is in it.
                if not (left and isinstance(error.__cause__, FileNotFoundError | FileExistsError)):
                    self._remove_empty_folders(name)
                    raise

    def remove(self, name: str) -> None:
        (self.root / name).unlink()
        self._remove_empty_folders(name)

    def names(self, folder: str) -> list[str]:
        below = os.walk(self.root / folder, onerror=_raise_unless_gone)
        return [Path(inner, file).relative_to(self.root).as_posix() for inner, _, files in below for file in files]

    def _remove_empty_folders(self, name: str) -> None:
        """Remove the folders between a file and the root that hold nothing."""
        with suppress(OSError):  # a folder holds something, or another process was faster
            for folder in Path(name).parents[:-1]:
                (self.root / folder).rmdir()


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # another process may remove a folder in the meantime
        raise DiskError(f"{error.filename}: the folder could not be listed: {error.strerror or error}.") from error


def _s3_client() -> Any:
    """A client with boto3's own credentials and endpoint, with patience for a slow network."""
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ConfigParseError, PartialCredentialsError, ProfileNotFound
    except ImportError:
        raise UsageError("artifacts: an S3 address needs boto3: `pip install cifar-sweep[s3]`.") from None

    try:
        session = botocore.session.get_session()
        attempts = session.get_config_variable("max_attempts") or REQUEST_ATTEMPTS
        retries = {"mode": "standard", "total_max_attempts": attempts}
        patience = Config(retries=retries, connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
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


class Bucket:
    """A part of an S3 bucket: the keys that begin with a prefix, which is empty or ends in a slash."""

    def __init__(self, address: str) -> None:
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        prefix = prefix.rstrip("/")
        # An address that is refused is not shown: what is wrong with it may be a secret.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", bucket):
            raise UsageError(f"artifacts: the S3 address names no bucket; accepted: {ACCEPTED}.")
        if prefix and ({"", ".", ".."} & set(prefix.split("/")) or re.search(r"[?#\\\x00-\x1f\x7f]", prefix)):
            raise UsageError(f"artifacts: the S3 address has a malformed prefix; accepted: {ACCEPTED}.")
        self.client = _s3_client()
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self.shown = self.address = f"s3://{bucket}/{prefix}".rstrip("/")
        self.root = None

    def read(self, name: str) -> bytes:
        with self._explained(name, "the file could not be read"):
            try:
                return bytes(self.client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read())
            except self.client.exceptions.NoSuchKey:
                raise FileNotFoundError(name) from None

    def write(self, name: str, content: bytes) -> None:
        with self._explained(name, "the file could not be written"):
            self.client.upload_fileobj(BytesIO(content), self._bucket, self._prefix + name)

    def remove(self, name: str) -> None:
        with self._explained(name, "the file could not be removed"):
            self.client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def names(self, folder: str) -> list[str]:
        with self._explained(folder, "the files could not be listed"):
            list_all = self.client.get_paginator("list_objects_v2").paginate
            pages = list_all(Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/")
            return [found["Key"].removeprefix(self._prefix) for page in pages for found in page.get("Contents", [])]

    @contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        """Turn boto3's errors into one sentence without its words, which may repeat a secret."""
        from botocore import exceptions

        where, host = f"{self.address}/{name}: {what}", urlsplit(self.client.meta.endpoint_url).netloc
        try:
            yield
            return
        except exceptions.FlexibleChecksumError:
            raise DamagedArtifactError(f"{where}: it does not fit the checksum that S3 keeps of it.") from None
        except exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "no code"))
            reason = f"{REFUSALS.get(code, f'{host} refused')} ({code})"
        except exceptions.NoCredentialsError:
            reason = f"there are no credentials; {OWN_WAYS}"
        except (exceptions.ConnectionError, exceptions.ReadTimeoutError) as error:
            reason = f"{host} does not answer ({type(error).__name__})"
        except exceptions.BotoCoreError as error:
            reason = type(error).__name__
        raise DiskError(f"{where}: {reason}.") from None
