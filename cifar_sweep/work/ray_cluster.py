"""Joining a Ray cluster, or starting one on this machine.

What Ray 2.60 leaves to us, all of it seen in runs: without `ray[client]` only a machine that is a node of a cluster can
join it, and the process of any other one is aborted; a closed port is waited for without end, a wrong token for 20 s; a
node behind a cut cable is noticed after minutes, unless keepalive says otherwise; token authentication is off for
clusters of several machines, and usage reports are on.
"""

import importlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cifar_sweep.errors import CifarSweepError, UsageError, one_line
from cifar_sweep.files import default_cache

ACCEPTED = "ray, or ray://HOST:PORT with the port of `ray start --head --port`"
CLIENT_PORT = 10001
STORE_BYTES = 80_000_000  # about the least that Ray takes; no arrays go through it
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0
# Before Ray is loaded, and only where nothing is said of it.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # even when disabled, that is reported once
    "RAY_AUTH_MODE": "token",
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none, now and in later versions
}
# Joins a cluster as the run will, in a process that Ray may abort.
PROBE = """
import logging, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
"""


class ClusterError(CifarSweepError):
    """The Ray cluster cannot be used."""


def check_request(on: str, *, storage: str, artifacts: str) -> str:
    """The address of the cluster that `--on` names; empty for ``ray``: RAY_ADDRESS, or this machine.

    Args:
        on: ``ray`` or ``ray://HOST:PORT``.
        storage: the database that the workers are to use.
        artifacts: where they put their files; empty where the study says.

    Raises:
        UsageError: no such form; a database that other machines do not reach; Ray is not installed.
    """
    if on == "ray":
        address, target = "", _named_by_environment()
        said = f"RAY_ADDRESS={target}"
    elif on.startswith("ray://"):
        address = target = on.removeprefix("ray://")
        said = f"--on {on}"
    else:
        raise UsageError(f"--on {on}: accepted: {ACCEPTED}.")
    if target or on != "ray":
        host, port = _host_and_port(target, said=said)
        if port == CLIENT_PORT:
            raise UsageError(f"{said}: {port} is the port of Ray Client, which is not used here; accepted: {ACCEPTED}.")
        if storage.startswith("sqlite") and not _is_here(host):
            files = "" if "://" in artifacts else " and a folder that all machines share or s3:// for --artifacts"
            raise UsageError(
                f"{said}: an SQLite database serves one machine; a cluster needs postgresql:// for --storage{files}."
            )
    if find_spec("ray") is None:
        raise _ray_is_missing()
    return address


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster until the block ends.

    Args:
        address: HOST:PORT of its head; empty for the one that RAY_ADDRESS names, or runs on this machine, or else for
            one that is started here and ends with the block.

    Raises:
        UsageError: Ray is not installed, or RAY_ADDRESS is no address.
        ClusterError: the cluster cannot be joined or started.
    """
    address = address or _named_by_environment() or _running_here()
    set_environment(os.environ, joining=bool(address))
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise _ray_is_missing() from None
    if address:
        _check_cluster(address)
    try:
        with _own_signals():
            _connect(ray, address)
        yield ray
    finally:
        with _own_signals():
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    own: dict[str, Any] = {} if address else {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:
        what = f"Ray cluster {address}: it could not be joined" if address else "Ray could not be started"
        raise ClusterError(f"{what}: {one_line(error)}.") from None
    with suppress(AttributeError):  # private; without it, a lost worker fills the screen with Ray's words
        ray._private.worker._worker_logs_enabled = False


@contextmanager
def _own_signals() -> Iterator[None]:
    """Undo what Ray does to SIGTERM, which is ours to hear."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def set_environment(environment: MutableMapping[str, str], *, joining: bool) -> None:
    """Set what Ray is to be told by the environment, where the user says nothing of it.

    Args:
        environment: of this process; Ray must not be loaded yet.
        joining: whether it joins a cluster, which has a token already, or starts one, for which a file with a token is
            made that nobody else can read.
    """
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)
    ways = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not joining and environment["RAY_AUTH_MODE"] == "token" and not any(environment.get(way) for way in ways):
        environment["RAY_AUTH_TOKEN_PATH"] = str(_token_file(default_cache() / "ray-token"))


def _token_file(path: Path) -> Path:
    """The file, made with a new token if it is not there; whole at any moment, for two runs may start at once."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            with suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink()
    except OSError as error:
        raise ClusterError(f"{path}: Ray's token could not be written: {error.strerror or error}.") from None
    return path


def _check_cluster(address: str) -> None:
    """Join the cluster on trial, in a process of its own."""
    where = f"Ray cluster {address}"
    if not _answers(address):
        raise ClusterError(f"{where}: nothing answers there; accepted: {ACCEPTED}.")
    command = [sys.executable, "-c", PROBE, address]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{where}: what answers there is no Ray cluster; accepted: {ACCEPTED}.") from None
    if not probe.returncode:
        return
    if "InvalidAuthToken" in probe.stderr or "AuthenticationError" in probe.stderr:
        raise ClusterError(
            f"{where}: its token is missing here, or another one; RAY_AUTH_TOKEN_PATH names the file that holds it, "
            "and RAY_AUTH_MODE=disabled joins a cluster that has none."
        )
    if "ersion mismatch" in probe.stderr:
        raise ClusterError(f"{where}: it has another version of Ray or Python; all machines need the same.")
    raise ClusterError(
        f"{where}: this machine is no node of it; `ray start --address={address}` makes it one, with --num-cpus=0 if "
        "it is not to train."
    )


def _named_by_environment() -> str:
    """What RAY_ADDRESS says, if that is an address."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address in ("auto", "local") else address


def _running_here() -> str:
    """The address of the cluster that was last started on this machine, if it still runs and is not unwanted."""
    if os.environ.get("RAY_ADDRESS") == "local":
        return ""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    try:
        address = (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""
    return address if address and _answers(address) else ""


def _host_and_port(address: str, *, said: str) -> tuple[str, int]:
    """Raises UsageError where it is no HOST:PORT."""
    with suppress(ValueError):
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address and parts.username is None:
            return parts.hostname, parts.port
    raise UsageError(f"{said}: not HOST:PORT; accepted: {ACCEPTED}.")


def _answers(address: str) -> bool:
    place = _host_and_port(address, said=f"Ray cluster {address}")
    try:
        socket.create_connection(place, timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _is_here(host: str) -> bool:
    """Whether it is an address of this machine, which is one that a socket can be bound to."""
    with suppress(OSError):
        for family, kind, _, _, (address, *_) in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind((address, 0))
                return True
    return False


def _ray_is_missing() -> UsageError:
    return UsageError("Ray is not installed: `pip install 'cifar-sweep[ray]'`, on every machine of the cluster.")
