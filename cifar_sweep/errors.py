"""The errors a user is meant to see: one sentence each, turned into an exit code by `cli` alone."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


class CifarSweepError(Exception):
    """Something outside the command was wrong: the data, the storage, the device, the disk."""

    exit_code = 1


class UsageError(CifarSweepError):
    """The command line or the sweep file asked for something that cannot be."""

    exit_code = 2


class DataError(CifarSweepError):
    """The dataset is missing, incomplete, or not what it was."""


class DeviceError(CifarSweepError):
    """The device asked for cannot be used here."""


class SickDeviceError(DeviceError):
    """The device computes nothing more in this process; another process can use it again."""


class StorageError(CifarSweepError):
    """The study database cannot be read or written."""


class StorageBusyError(StorageError):
    """Another process holds the study database for very long; it may let go of it later."""


class StorageFullError(StorageError):
    """The server has no connection left for a process that begins."""


class StorageMissingError(StorageError):
    """There is no study database yet."""


class DiskError(CifarSweepError):
    """A file could not be written, most often because the disk is full."""


class StudyError(CifarSweepError):
    """The study is missing, or does not fit what was asked of it."""


def one_line(error: BaseException) -> str:
    """An unforeseen error's kind and the first line of its words, without a full stop."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0].rstrip('.')}" if words else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known words, and all of them: ``did you mean a? Known: a, b``."""
    words = sorted(known)
    close = get_close_matches(word, words, n=3, cutoff=0.5)  # the best one first
    alike = [SequenceMatcher(a=each, b=word).ratio() for each in close]
    close = [each for each, likeness in zip(close, alike, strict=True) if likeness > alike[0] - 0.1]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}known: {', '.join(words)}"
