"""The process that trains a trial, and whether it still runs."""

import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@cache
def _system() -> str:
    """The machine's own id and the process namespace: of two containers, or machines of one name, the pids differ."""
    found = []
    with suppress(OSError):
        found.append(Path("/etc/machine-id").read_text().strip())
    with suppress(OSError):
        found.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "-".join(found)


@dataclass(frozen=True)
class Owner:
    """The process that trains a trial."""

    host: str  # the machine's name
    pid: int
    started: str  # in the system's own count: pids are used again
    token: str  # differs for every worker that takes trials
    system: str = field(default_factory=_system)  # which processes that machine's pids are of

    @classmethod
    def current(cls) -> "Owner":
        """This process, with a new token."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, process_started(pid) or "", uuid.uuid4().hex)

    def is_dead(self) -> bool:
        """Whether the process surely runs no longer: it is of this system, and gone."""
        here = (self.host, self.system) == (socket.gethostname(), _system())
        return here and process_started(self.pid) != self.started


def process_started(pid: int) -> str | None:
    """The start time of a running process in the system's own count, empty where unknown, None where it is gone."""
    try:
        # The name in parentheses may hold spaces; state and start time are fields 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or between, opening and reading
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
