"""Joining a Ray cluster, or starting one on this machine.

Ray 2.60 leaves some things to us. Without `ray[client]` only a node of a cluster can join it; on any other machine Ray
aborts the process. Ray waits for a closed port without end, and 20 s after a wrong token. It notices a node behind a
cut cable after minutes, unless keepalive is set. Its clusters of several machines have no token authentication and
report usage, unless they are told otherwise.
"""

import importlib
import logging
import os
import re
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

ACCEPTED = "ray, or ray://HOST:PORT with the port of `ray start --head --port`"
CLIENT_PORT = 10001
STORE_BYTES = 80_000_000  # about the least that Ray takes; no arrays go through it
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0
# What Ray is told before it is loaded, where the user says nothing of it.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # even when disabled, Ray reports that once
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
# What the probe's failure means, by Ray's words.
REFUSALS = {
    "InvalidAuthToken|AuthenticationError": (
        "its token is missing here, or another one; RAY_AUTH_TOKEN_PATH names the file that holds it, and "
        "RAY_AUTH_MODE=disabled joins a cluster that has none"
    ),
    "ersion mismatch": "it has another version of Ray or Python; all machines need the same",
    "": "this machine is no node of it; `ray start --address={}` makes it one, with --num-cpus=0 if it is not to train",
}


class ClusterError(CifarSweepError):
    """The Ray cluster cannot be used."""


def check_request(on: str, *, storage: str, artifacts: str, device: str, gpus: float) -> str:
    """The cluster's address, HOST:PORT; empty for a cluster that runs on this machine, or is to be started here.

    `on` is ``ray`` or ``ray://HOST:PORT``, `gpus` are those of each worker. Raises UsageError where there is no such
    address, where other machines do not reach the database, where no worker can have the device or the share of GPUs,
    and where Ray is not installed.
    """
    if on == "ray":
        address = os.environ.get("RAY_ADDRESS", "")
        address, said = "" if address in ("auto", "local") else address, f"RAY_ADDRESS={address}"
    elif on.startswith("ray://"):
        address, said = on.removeprefix("ray://"), f"--on {on}"
    else:
        raise UsageError(f"--on {on}: accepted: {ACCEPTED}.")
    if address or on != "ray":
        host, port = _host_and_port(address, said=said)
        if port == CLIENT_PORT:
            raise UsageError(f"{said}: {port} is the port of Ray Client, which is not used here; accepted: {ACCEPTED}.")
        if storage.startswith("sqlite") and not _is_here(host):
            files = "" if "://" in artifacts else " and a folder that all machines share or s3:// for --artifacts"
            raise UsageError(
                f"{said}: an SQLite database serves one machine; a cluster needs postgresql:// for --storage{files}."
            )
    if not 0 <= gpus <= 1:
        raise UsageError(f"--gpus-per-worker {gpus:g}: a worker trains on one GPU; accepted: from 0 to 1.")
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: on Ray the cluster chooses the GPU; accepted: auto, cpu, cuda.")
    if device == "cuda" and not gpus:
        raise UsageError("--device cuda: on Ray a worker has a GPU only by --gpus-per-worker; accepted: 0.5, or 1.")
    if find_spec("ray") is None:
        raise UsageError("Ray is not installed: `pip install 'cifar-sweep[ray]'`, on every machine of the cluster.")
    return address


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, connected until the block ends to the cluster of this address, which `check_request` returned."""
    address = address or _running_here()
    set_environment(os.environ, joining=bool(address))
    ray = importlib.import_module("ray")
    if address:
        _check_cluster(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, address)
        _take_back(on_sigterm)
        yield ray
    finally:
        ray.shutdown()
        _take_back(on_sigterm)


def _take_back(on_sigterm: Any) -> None:
    """Undo what Ray does to SIGTERM, which is ours to hear."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _connect(ray: Any, address: str) -> None:
    own: dict[str, Any] = {} if address else {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:
        what = f"Ray cluster {address}: it could not be joined" if address else "Ray could not be started"
        raise ClusterError(f"{what}: {one_line(error)}.") from None
    with suppress(AttributeError):  # private; without it, a lost worker fills the screen with Ray's words
        ray._private.worker._worker_logs_enabled = False


def set_environment(environment: MutableMapping[str, str], *, joining: bool) -> None:
    """Set what Ray reads when it is loaded, where the user says nothing of it; a cluster of our own has a new token."""
    environment.update(ENVIRONMENT | dict(environment))
    told = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    if environment["RAY_AUTH_MODE"] == "token" and not joining and not told:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_cluster(address: str) -> None:
    """Join the cluster on trial, in a process of its own."""
    where, command = f"Ray cluster {address}", [sys.executable, "-c", PROBE, address]
    if not _answers(address):
        raise ClusterError(f"{where}: nothing answers there; accepted: {ACCEPTED}.")
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{where}: what answers there is no Ray cluster; accepted: {ACCEPTED}.") from None
    except subprocess.CalledProcessError as probe:
        reason = next(reason for words, reason in REFUSALS.items() if re.search(words, probe.stderr))
        raise ClusterError(f"{where}: {reason.format(address)}.") from None


def _running_here() -> str:
    """The address of the cluster that was last started on this machine, if it still runs and is not unwanted."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    address = ""
    if os.environ.get("RAY_ADDRESS") != "local":
        with suppress(OSError):
            address = (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    return address if address and _answers(address) else ""


def _host_and_port(address: str, *, said: str) -> tuple[str, int]:
    with suppress(ValueError):
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address and parts.username is None:
            return parts.hostname, parts.port
    raise UsageError(f"{said}: not HOST:PORT; accepted: {ACCEPTED}.")


def _answers(address: str) -> bool:
    with suppress(OSError), socket.create_connection(_host_and_port(address, said="Ray"), timeout=CONNECT_SECONDS):
        return True
    return False


def _is_here(host: str) -> bool:
    """Whether this machine has the address: a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.create_server((host, 0), family=family):
        return True
    return False
