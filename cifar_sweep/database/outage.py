"""A database that does not answer: which errors say so, and doing a thing again until it is done."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from random import SystemRandom
from time import monotonic, sleep
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from cifar_sweep.errors import StorageBusyError, StorageError, StorageFullError

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0
LOOK_UP_SECONDS = 0.2  # how often one who waits asks whether to stop
REMINDER_SECONDS = 300
# What PostgreSQL answers when it may do later what it does not do now: it stops or starts, it has too many clients, or
# two transactions stood in each other's way. Class 08 besides: the connection.
LATER = {"57P01", "57P02", "57P03", "53300", "40P01", "40001"}
# While it connects, libpq passes on the server's words, and its own, without a code.
NETWORK = (
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH,
)  # fmt: skip
WORDS = {
    *map(os.strerror, NETWORK), "server closed the connection", "terminating connection", "EOF detected",
    "the database system is ",  # starting up, shutting down, in recovery mode, not yet accepting connections
    "too many connections", "too many clients", "remaining connection slots", "SSL connection has been closed",
    "accepting connections on that socket", "timeout expired",
    "failed to resolve host", "could not translate host name",  # a container's name is gone while it is
}  # fmt: skip
EACH_TAKES_ONE = "each worker takes one connection, and the command another: fewer --workers, or a higher limit"
ADVICE = {
    **dict.fromkeys(("too many connections", "too many clients", "remaining connection slots"), EACH_TAKES_ONE),
    "query_wait_timeout": f"the pooler had none left; {EACH_TAKES_ONE}",
    "unsupported startup parameter": "a pooler takes no options; leave them out of the address and of PGOPTIONS",
    "not allowed in statement pooling mode": "use the server's own address, or a pooler of sessions or transactions",
}
_ERRORS = (StorageInternalError, SQLAlchemyError, sqlite3.Error)
T = TypeVar("T")


def is_outage(error: BaseException) -> bool:
    """Whether this says that the database does not answer now, and may later; not that it refuses for good.

    An outage is also a database that another process holds for longer than we wait. A full disk, a wrong password, a
    missing table and every error that is none of the database's are no outage; nor is a server that has no connection
    left for a worker that begins.
    """
    return _outage(error) is not None


def wait_out(
    operation: Callable[[], T],
    *,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    note: Callable[[], None] = lambda: None,
) -> T:
    """Do `operation`, again and again while the database does not answer; raise at once what is no outage.

    It is tried again after 0.2 s at most, then after twice as long each time, up to 5 s, for as long as it takes.

    Args:
        operation: what may be done twice: where the answer of the database was lost, it was done already.
        stop: whether to give up and raise the last outage; asked before and during each wait, every 0.2 s.
        say: told in a sentence when an outage begins, every five minutes that it lasts, and when it is over.
        note: told of each outage.
    """
    began: float | None = None
    reminded, wait = 0.0, FIRST_WAIT_SECONDS
    while True:
        try:
            result = operation()
        except Exception as error:
            outage = _outage(error)
            if outage is None:
                _say_end(began, say)
                raise
            note()
            if stop():
                raise
            now, reason = monotonic(), _reason(outage)
            if began is None:
                began = reminded = now
                say(f"the database does not answer ({reason}); going on when it does.")
            elif now - reminded >= REMINDER_SECONDS:
                reminded, minutes = now, (now - began) / 60
                say(f"the database has not answered for {minutes:.0f} minutes ({reason}); going on when it does.")
            # Shorter by chance: workers that lost the database together shall not come back together.
            if not pause(SystemRandom().uniform(0.5, 1) * wait, stop):
                raise
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        else:
            _say_end(began, say)
            return result


def _say_end(began: float | None, say: Callable[[str], None]) -> None:
    if began is not None:
        say(f"the database answers again after {max(1, monotonic() - began):.0f} s.")


def pause(seconds: float, stop: Callable[[], bool]) -> bool:
    """Sleep, unless `stop` says yes; whether it never did."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        sleep(min(left, LOOK_UP_SECONDS))
        if stop():
            return False
    return True


def _outage(error: BaseException) -> BaseException | None:
    """The one among the causes of `error` that says that the database may answer later."""
    # A mistake made while an error of the database was handled does not pass it on.
    if not (isinstance(error, (StorageError, *_ERRORS)) or hasattr(error, "sqlstate")):
        return None
    for cause in _causes(error):
        later = _says_later(cause)
        if later is not None:
            return cause if later else None
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, the latest first; also what `from None` hides from people."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _says_later(error: BaseException) -> bool | None:
    """Whether this error says that the database may answer later; None where that is for its cause to say."""
    if isinstance(error, (StorageBusyError, StorageFullError)):
        return isinstance(error, StorageBusyError)
    if isinstance(error, sqlite3.Error):
        # The lowest byte is the kind, the rest which of its kind.
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_BUSY
    if isinstance(error, PendingRollbackError):  # the connection was lost before, and Optuna has tried it again
        return True
    if isinstance(error, DBAPIError):
        return True if error.connection_invalidated else None
    if hasattr(error, "sqlstate"):  # psycopg's, told so: to import it takes a while, and SQLite needs it not
        code: str | None = error.sqlstate
        return any(word in str(error) for word in WORDS) if code is None else code in LATER or code.startswith("08")
    return None


def _reason(outage: BaseException) -> str:
    """The driver's first line, without what it says every time."""
    line = _first_line(str(outage.orig if isinstance(outage, DBAPIError) else outage), type(outage).__name__)
    # Our own sentence goes on with what to do about it.
    return line.removeprefix("connection failed: ").partition(";")[0]


def _first_line(words: str, otherwise: str) -> str:
    return next(iter(words.strip().splitlines()), otherwise)


def explain(error: BaseException) -> StorageError | None:
    """A database error in one sentence, or None where `error` is none.

    Optuna wraps everything in one message about length limits; the driver's own word is at the end of the causes.
    """
    if not isinstance(error, _ERRORS):
        return None
    causes = list(_causes(error))
    word = next((str(cause.orig) for cause in causes if isinstance(cause, DBAPIError)), str(causes[-1]))
    advice = next((f"; {cure}" for words, cure in ADVICE.items() if words in word), "")
    kind = StorageFullError if advice.endswith(EACH_TAKES_ONE) else StorageError
    return kind(f"storage: the database refused: {_first_line(word, 'no reason given').rstrip('.')}{advice}.")
