"""What this process may have of its machine: a container's, a batch job's or a user's share, of cgroups v1 and v2."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OF_THIS_PROCESS = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that this process may use, or as many as its share of processor time is worth, whichever is less."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu"):
        with suppress(OSError, ValueError):  # none is set, or the files are those of the other version
            quota, period = (folder / "cpu.max").read_text().split()
            found = min(found, int(quota) // int(period))
        with suppress(OSError, ValueError):
            files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            quota, period = (file.read_text() for file in files)
            found = min(found, int(quota) // int(period)) if int(quota) > 0 else found
    return max(1, found)


def threads_asked() -> int:
    """The number of threads that OMP_NUM_THREADS asks for; 0 where it asks for none."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def memory() -> int | None:
    """Bytes that are left to this process until a limit; None where there is no limit."""
    left: list[int] = []
    for folder in _groups("memory"):
        for limit, used, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError, KeyError):
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                if most < 1 << 60:  # version 1 writes a number for none
                    left.append(max(0, most - taken + int(facts[idle])))  # what only holds files is given up
    return min(left, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those that it is in, as far as they are seen here."""
    with suppress(OSError):
        for line in OF_THIS_PROCESS.read_text().splitlines():
            _, names, place = line.split(":", 2)
            if names == "" or controller in names.split(","):
                for root in (CGROUPS / names, CGROUPS / controller) if names else (CGROUPS,):
                    inner = root / place.lstrip("/")
                    yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))
