"""The C code of `lanes.c`, compiled for this very machine where it has a C compiler, and the structures it works on.

Compiling takes some seconds, once: the library is kept in the cache folder, named by all that it depends on. A machine
without a compiler trains with PyTorch's own operations.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from cifar_sweep.errors import DiskError, one_line
from cifar_sweep.files import default_cache, replace_file
from cifar_sweep.training import winograd
from cifar_sweep.training.device import KERNELS

log = logging.getLogger(__name__)
_SOURCE = Path(__file__).parent / "lanes.c"
_COMPILERS = ("cc", "gcc", "clang")
_ARM = platform.machine() in ("arm64", "aarch64")
_FOR_THIS_PROCESSOR = "-mcpu=native" if _ARM else "-march=native"
_FOR_AVX2 = "-march=haswell"
# No option that lets the compiler change the order of a sum, or what becomes of a NaN.
_FLAGS = (
    "-std=gnu11", "-O3", "-funroll-loops", "-fschedule-insns", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fno-strict-aliasing",
    # Tuned for AMD processors, gcc joins some multiplications and additions and others not, so that a member's numbers
    # depend on the vectors it is in. This is also a little faster, there and on AVX2 (docs/LOG.md).
    *([] if _ARM else ["-mtune=generic"]),
)  # fmt: skip
_SECONDS = 180
MAX_STAGES = 8
_AMD_ZEN_4 = "25"  # the processor family that works on vectors of 512 bits in two halves
NARROW, _WIDE = 8, 16  # members to a vector


class CompilerError(Exception):
    """The compiler failed, or what it made does not fit."""


# The structures of lanes.c.


def _fields(names: str, kind: type[Any]) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Stage(ctypes.Structure):
    _fields_ = (
        *_fields("ci co k pad hi wi ho wo hq wq pool norm after mask", ctypes.c_int32),
        *_fields("slope momentum eps", ctypes.c_float),
        *_fields("weight bias gamma beta", ctypes.c_int32),
    )


class Net(ctypes.Structure):
    _fields_ = (*_fields("stages batch", ctypes.c_int32), ("stage", Stage * MAX_STAGES))


class Call(ctypes.Structure):
    _fields_ = (
        *_fields("arena images features rows gradients", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        *_fields("members count training", ctypes.c_int32),
        *_fields("running_mean running_var masks", ctypes.c_void_p * MAX_STAGES),
    )


def layout() -> dict[str, int]:
    """The size of each structure and the place of each of its fields, in bytes."""
    found = {}
    for kind in (Stage, Net, Call):
        found[kind.__name__] = ctypes.sizeof(kind)
        found |= {f"{kind.__name__}.{field[0]}": getattr(kind, field[0]).offset for field in kind._fields_}
    return found


def kernels(*, bf16: bool, members: int = NARROW) -> ctypes.CDLL | None:
    """The library for groups of so many members, compiled if it is not there; None where that cannot be."""
    if os.environ.get(KERNELS) == "torch" or identity() is None or (bf16 and not has_bf16()):
        return None
    return library(_folder(), lane_count(members), 2 if bf16 else 1)


def _folder() -> Path:
    """This user's own: what is loaded as code is not taken from others that share the cache."""
    folder = default_cache() / "kernels"
    is_others = folder.exists() and folder.stat().st_uid != os.geteuid()
    return folder.with_name(f"kernels-{os.geteuid()}") if is_others else folder


def prepare_kernels(*, bf16: bool) -> None:
    """Begin to compile, where that is still to be done, what training on the CPU will ask for; returns at once."""

    def compile_them() -> None:
        for members in (NARROW, _WIDE):
            kernels(bf16=bf16, members=members)

    threading.Thread(target=compile_them, daemon=True).start()


def lane_count(members: int) -> int:
    """How many share a vector: 16 in a group of more than 8, where the processor works on 16 32-bit words at once.

    Where it does so in two halves, 8 were faster (docs/LOG.md, 2026-11-28).
    """
    found = dict(re.findall(r"^(vendor_id|cpu family)\s*: (.*)$", processor(), flags=re.MULTILINE))
    halves = found.get("vendor_id") == "AuthenticAMD" and found.get("cpu family") == _AMD_ZEN_4
    return _WIDE if members > NARROW and _has("avx512f", "avx512vl", "avx512bw") and not halves else NARROW


def kernels_name(device: torch.device) -> str:
    """What convolves here: ``compiled`` with a hash of all that it depends on, or ``torch``; and ``winograd``."""
    if device.type != "cpu":
        return "torch"
    # Loaded, for nothing else shows that no program may run from the cache.
    there = not obstacle() and kernels(bf16=has_bf16())
    named = f"compiled {str(identity())[:12]}" if there else "torch"
    return named + (" and winograd" if winograd.pays() else "")


def obstacle() -> str:
    """Why there are no kernels on this machine; empty if nothing is known that is in their way."""
    if os.environ.get(KERNELS) == "torch":
        return f"{KERNELS} is torch"
    if identity() is None:
        named = os.environ.get("CC", "").strip()
        return f"CC is {named!r}, which is no C compiler here" if named else "there is no C compiler (gcc or clang)"
    reasons = [failed.read_text() for failed in _folder().glob(f"*-{identity()}.failed")]
    return f"the C compiler failed: {reasons[0]}" if reasons else ""


@cache
def library(folder: Path, lanes: int, pack: int) -> ctypes.CDLL | None:
    """The library for `lanes` members to a vector and `pack` numbers to a word; None, and a warning, without one."""
    path = folder / f"lanes-{lanes}-{'bf16' if pack == 2 else 'fp32'}-{identity()}.so"
    failed = path.with_suffix(".failed")  # so that it is not tried again by each process
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:  # what others put there would be loaded
            raise PermissionError(f"{folder}: other users can write there")
        if failed.exists():
            log.info("no compiled kernels, as the compiler failed before: %s", failed.read_text())
            return None
        if not path.exists():
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    build(path, lanes, pack)
        return _loaded(path)
    except (OSError, DiskError, CompilerError) as error:
        log.warning("no compiled kernels, PyTorch's are used: %s", error)
        if isinstance(error, CompilerError) and "space left" not in str(error):  # that passes
            with suppress(OSError):
                failed.write_text(str(error))
        return None


def _loaded(path: Path) -> ctypes.CDLL:
    """The library at `path`, of which it is known that its structures are ours."""
    found = ctypes.CDLL(str(path))
    found.lanes_bytes.restype = found.lanes_place.restype = ctypes.c_int64
    differing = [name for name, place in layout().items() if found.lanes_place(name.encode()) != place]
    if differing:
        raise CompilerError(f"it lays out {', '.join(differing)} otherwise than Python")
    return found


def build(path: Path, lanes: int, pack: int) -> None:
    """Compile lanes.c into the library `path`. Raises CompilerError or DiskError."""
    log.info("compiling kernels for this machine, once")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        command = [*compiler(), *_FLAGS, _target(), f"-DLANES={lanes}", f"-DPACK={pack}", "-fPIC", "-shared"]
        command += [str(_SOURCE), "-o", str(made), "-lm"]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
        except subprocess.SubprocessError as error:
            output = str(getattr(error, "stderr", None) or "").strip().splitlines()
            raise CompilerError(output[0] if output else one_line(error)) from None
        replace_file(path, made.read_bytes())


@cache
def compiler() -> tuple[str, ...]:
    """The C compiler: the command in the variable CC, else the first of the usual ones; empty where there is none."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
        commands = [named] if named else [[name] for name in _COMPILERS]
    except ValueError:  # a quote that is not closed
        return ()
    return next(((found, *options) for name, *options in commands if (found := shutil.which(name))), ())


@cache
def identity() -> str | None:
    """A hash of the source, the structures, the compiler and the processor; None where there is no compiler."""
    command = compiler()
    if not command or sys.platform == "win32":
        return None
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    parts = [version, *command[1:], *_FLAGS, _target(), processor(), _SOURCE.read_text(), str(layout())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@cache
def processor() -> str:
    """What ``-march=native`` makes of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(platform.uname()[4:])
    kept = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers, by the instructions that lanes.c knows."""
    return _has("avx512_bf16", "avx512bw", "avx512vl")


def _has(*flags: str) -> bool:
    """Whether the processor has these, and is not held to fewer."""
    return _target() != _FOR_AVX2 and set(flags) <= set(processor().split())


def _target() -> str:
    """The compiler's option for what to compile for."""
    return _FOR_AVX2 if os.environ.get(KERNELS) == "avx2" else _FOR_THIS_PROCESSOR
