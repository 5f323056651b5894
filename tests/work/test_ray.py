"""Workers on Ray: what is refused, what a lost worker costs; at the end on real clusters, in processes of their own."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cifar_sweep.errors import CifarSweepError, DataError, SickDeviceError, UsageError
from cifar_sweep.machine.groups import Groups
from cifar_sweep.machine.plan import Plan
from cifar_sweep.machine.speeds import Split
from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.storage import Storage, open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import load as load_sweep
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models.own import fingerprint
from cifar_sweep.work import ray as launch_ray
from cifar_sweep.work import ray_cluster as joining
from cifar_sweep.work.ray import ClusterWorker, Terms, run_on_ray
from cifar_sweep.work.ray_cluster import ENVIRONMENT, ClusterError, check_request, set_environment
from cifar_sweep.work.submit import facts
from cifar_sweep.work.worker import Job
from tests.conftest import TINY_SWEEP

SQLITE, POSTGRES = "sqlite:///studies.db", "postgresql://me@database/studies"
ELSEWHERE = "203.0.113.7:6379"  # an address that is nobody's
PASSWORD = "not-to-be-seen"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray is set, and what a test sets is unset after it."""
    for name in (*ENVIRONMENT, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not a cluster that happens to run on this machine


# Ray, as far as it is used


class RayError(Exception):
    """As ray.exceptions.RayError."""


class RayTaskError(RayError):
    """As ray.exceptions.RayTaskError."""


class FakeActor:
    """Runs the methods of a worker in two threads, or never where there is no room for it."""

    def __init__(self, worker: ClusterWorker, *, room: bool) -> None:
        self.worker = worker
        self.pool = ThreadPoolExecutor(2) if room else None

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> "Future[Any]":
            method = getattr(self.worker, name)
            return self.pool.submit(method, *arguments) if self.pool else Future()

        return SimpleNamespace(remote=remote)


class FakeRay(ModuleType):
    """As the module `ray`, with a cluster that has room for so many workers."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.room = 10
        self.actors: list[FakeActor] = []
        self.killed: list[FakeActor] = []
        self.options: dict[str, Any] = {}
        self.initialized: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")

    def init(self, **options: Any) -> None:
        self.initialized = options
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray takes it

    def shutdown(self) -> None:
        self.initialized = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}, {"Alive": False}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}

    def remote(self, kind: type[ClusterWorker]) -> Any:
        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=lambda: self.start(kind()))

        return SimpleNamespace(options=options)

    def start(self, worker: ClusterWorker) -> FakeActor:
        self.actors.append(FakeActor(worker, room=len(self.actors) < self.room))
        return self.actors[-1]

    def wait(self, refs: list["Future[Any]"], *, timeout: float) -> tuple[list[Any], list[Any]]:
        done, left = wait_for(refs, timeout=timeout)
        return list(done), list(left)

    def get(self, ref: "Future[Any]", *, timeout: float) -> Any:
        return ref.result(timeout)

    def kill(self, actor: FakeActor, *, no_restart: bool) -> None:
        self.killed.append(actor)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(launch_ray, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(launch_ray, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(launch_ray, "RESTART_SECONDS", 0.1)
    return fake


@pytest.fixture
def said() -> list[str]:
    return []


def tiny(**changes: int) -> str:
    text = TINY_SWEEP
    for key, value in changes.items():
        before = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(before, f"{key} = {value}")
    return text


def begin(storage: Storage, name: str, small_data: ImageData, **changes: int) -> SweepStudy:
    path = Path("tiny.toml")
    path.write_text(tiny(**changes))
    return open_or_resume(storage, name, load_sweep(path), data=facts(small_data, source="synthetic:500"))


@pytest.fixture
def study(sqlite_template: Path, tmp_path: Path, small_data: ImageData) -> SweepStudy:
    """Four trials of one epoch, in studies.db."""
    shutil.copy(sqlite_template, tmp_path / "studies.db")
    return begin(open_storage(SQLITE), "tiny", small_data, epochs=1)


def job(name: str = "tiny", **changes: Any) -> Job:
    return Job(SQLITE, (name,), **changes)


def never() -> Callable[[], bool]:
    """A run that does not end by itself fails."""
    until = time.monotonic() + 40

    def stop() -> bool:
        if time.monotonic() > until:
            raise TimeoutError("the run did not end")
        return False

    return stop


def run(
    job: Job, said: list[str], *, workers: int = 1, stop: Callable[[], bool] | None = None, address: str = ""
) -> None:
    options = {"workers": workers, "gpus": 0.0, "group": 1, "stop": stop or never(), "say": said.append}
    # In a thread of its own: where a browser was tested before, this one has an event loop that runs.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(run_on_ray, job, address, **options).result()


def check(on: str, *, storage: str = POSTGRES, artifacts: str = "", device: str = "auto", gpus: float = 0.0) -> str:
    return check_request(on, storage=storage, artifacts=artifacts, device=device, gpus=gpus)


def states(study: SweepStudy) -> list[str]:
    return [trial.state for trial in study.trials()]


# What is refused


@pytest.mark.parametrize(
    "on", ["slurm", "ray:", "ray://", "ray://head", "ray://head:port", "ray://me@head:6379", "ray://head:6379/x"]
)
def test_bad_addresses_are_refused(on: str, ray: FakeRay) -> None:
    with pytest.raises(UsageError, match=r"accepted: ray, or ray://HOST:PORT") as refusal:
        check(on)
    assert on in str(refusal.value)


def test_the_port_of_ray_client_is_refused(ray: FakeRay) -> None:
    with pytest.raises(UsageError, match="Ray Client"):
        check("ray://head:10001")


def test_a_good_address_is_returned(ray: FakeRay) -> None:
    assert check("ray", storage=SQLITE) == ""
    assert check(f"ray://{ELSEWHERE}") == ELSEWHERE
    assert check("ray://[::1]:6379") == "[::1]:6379"


def test_sqlite_serves_this_machine_alone(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("ray://127.0.0.1:6379", storage=SQLITE) == "127.0.0.1:6379"
    with pytest.raises(UsageError, match=r"postgresql:// for --storage and a folder that all machines share"):
        check(f"ray://{ELSEWHERE}", storage=SQLITE, artifacts="artifacts")
    with pytest.raises(UsageError, match=r"postgresql:// for --storage\.$"):
        check(f"ray://{ELSEWHERE}", storage=SQLITE, artifacts="s3://bucket/prefix")
    monkeypatch.setenv("RAY_ADDRESS", ELSEWHERE)
    with pytest.raises(UsageError, match=rf"^RAY_ADDRESS={ELSEWHERE}: an SQLite database serves one machine"):
        check("ray", storage=SQLITE, artifacts="artifacts")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head"])
def test_an_address_in_the_environment_is_checked_too(
    address: str, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=f"^RAY_ADDRESS={address}: "):
        check("ray")


def test_without_ray_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'cifar-sweep\[ray\]'"):
        check("ray", storage=SQLITE)


@pytest.mark.slow
def test_the_module_does_not_load_ray() -> None:
    script = "import sys, cifar_sweep.work.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("device", "gpus", "why"),
    [
        ("cuda:1", 1.0, "cluster chooses"),
        ("cuda", 0.0, "only by --gpus"),
        ("auto", 1.5, "from 0 to 1"),
        ("auto", 2.0, "one GPU"),
        ("auto", -1.0, "from 0"),
        ("auto", float("nan"), "from 0"),
    ],
)
def test_impossible_resources_are_refused(device: str, gpus: float, why: str, ray: FakeRay) -> None:
    with pytest.raises(UsageError, match=why):
        check("ray", device=device, gpus=gpus)


# Joining


def test_what_the_user_set_stays() -> None:
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "1",
        "RAY_grpc_client_keepalive_time_ms": "9",
    }
    before = dict(environment)
    set_environment(environment, joining=False)
    assert environment.items() >= before.items()
    assert environment["RAY_USAGE_STATS_REPORT_URL"] == "http://127.0.0.1:9/"
    assert "RAY_AUTH_TOKEN" not in environment


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "t"}, {"RAY_AUTH_TOKEN_PATH": "t"}])
def test_a_cluster_of_ones_own_has_a_token_of_its_own(given: dict[str, str]) -> None:
    one: dict[str, str] = {}
    other: dict[str, str] = {}
    set_environment(one, joining=False)
    set_environment(other, joining=False)
    assert one["RAY_AUTH_MODE"] == "token"
    assert len(one["RAY_AUTH_TOKEN"]) == 64
    assert one["RAY_AUTH_TOKEN"] != other["RAY_AUTH_TOKEN"]
    told = dict(given)
    set_environment(told, joining=False)
    assert told == ENVIRONMENT | given
    joining_one: dict[str, str] = {}
    set_environment(joining_one, joining=True)
    assert joining_one == ENVIRONMENT


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_where_nothing_answers_there_is_no_cluster(
    ray: FakeRay, study: SweepStudy, said: list[str], closed_port: int
) -> None:
    with pytest.raises(ClusterError, match="nothing answers there"):
        run(job(), said, address=f"127.0.0.1:{closed_port}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("W gcs_client.cc:210: Unauthenticated: InvalidAuthToken: missing or incorrect", "token"),
        ("RuntimeError: Version mismatch: The cluster was started with: Ray: 2.50", "another version"),
        ("Fatal Python error: Aborted", "no node of it"),
    ],
)
def test_why_a_cluster_cannot_be_joined(
    words: str, why: str, ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "PROBE", f"import sys; sys.exit({words!r})")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"^Ray cluster {address}: .*{why}"):
            run(job(), said, address=address)
    assert not ray.initialized


def test_a_cluster_that_was_started_here_is_joined(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(joining, "PROBE", "")
    current = tmp_path / "ray" / "ray_current_cluster"
    current.parent.mkdir()
    current.write_text(f"127.0.0.1:{closed_port}\n")  # one that has ended
    with joining.joined(""):
        assert ray.initialized["address"] == "local"
        assert ray.initialized["object_store_memory"] == 80_000_000
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        current.write_text(address)
        with joining.joined(""):
            assert ray.initialized["address"] == address
            assert "object_store_memory" not in ray.initialized  # Ray refuses it there
        monkeypatch.setenv("RAY_ADDRESS", "local")
        with joining.joined(""):
            assert ray.initialized["address"] == "local"


def test_what_keeps_ray_from_starting_is_said_in_a_sentence(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no room\nand much more")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterError, match=r"^Ray could not be started: RuntimeError: no room\.$"), joining.joined(""):
        pass


def test_sigterm_stays_ours(ray: FakeRay) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, ours := lambda *_: None)
        with joining.joined(""):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


# A run


def test_the_study_is_finished(ray: FakeRay, study: SweepStudy, said: list[str]) -> None:
    run(job(), said, workers=2)
    assert states(study) == ["complete"] * 4
    assert said == ["Ray: 1 node with 8 cores and 0 GPUs; 2 workers with 1 cores each"]
    assert ray.options["resources"] == {"node:10.0.0.1": 0.001}  # SQLite: on this machine alone
    assert not list(Path("artifacts").glob(".run-*"))


def test_a_stop_gives_trials_back(ray: FakeRay, study: SweepStudy, small_data: ImageData, said: list[str]) -> None:
    long = begin(study.storage, "long", small_data, epochs=200)

    def stop() -> bool:
        return any(len(trial.curve) > 1 for trial in long.trials())

    run(job("long"), said, workers=2, stop=stop)
    assert states(long) == ["waiting", "waiting"]
    assert all(trial.owner is None for trial in long.trials())
    assert not ray.initialized


def test_a_lost_worker_is_started_again(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, lost = ClusterWorker.work, []

    def work_or_vanish(worker: ClusterWorker, job: Job, terms: Terms) -> CifarSweepError | None:
        if len(lost) < 2:
            lost.append(job)
            time.sleep(0.3)
            raise RayError("the actor died because its node has died")
        return work(worker, job, terms)

    monkeypatch.setattr(ClusterWorker, "work", work_or_vanish)
    run(job(), said)
    assert states(study) == ["complete"] * 4
    words = [f"worker 0 was lost on {socket.gethostname()}, with its process or its node; it is started again in"] * 2
    assert [sentence[: len(word)] for sentence, word in zip(said[1:], words, strict=True)] == words
    assert len(ray.actors) == 3
    assert ray.killed[:2] == ray.actors[:2]  # it may only be out of reach


def test_a_worker_whose_gpu_is_sick_is_started_again_in_another_process(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, sick = ClusterWorker.work, iter([SickDeviceError("cuda:0: AcceleratorError: CUDA error: unspecified.")])
    monkeypatch.setattr(ClusterWorker, "work", lambda *asked: next(sick, None) or work(*asked))
    run(job(), said)
    assert states(study) == ["complete"] * 4
    assert f"on {socket.gethostname()}, SickDeviceError: cuda:0: AcceleratorError: CUDA error: unspecified" in said[1]
    assert "it is started again in" in said[1]
    assert ray.killed[0] is ray.actors[0]
    assert len(ray.actors) == 2


def test_a_worker_that_waits_for_room_holds_nobody_up(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_ray, "PATIENCE_SECONDS", 0.3)
    ray.room = 1
    run(job(), said, workers=3)
    assert states(study) == ["complete"] * 4
    assert said[1:] == ["1 of 3 workers are at work; the others wait for room in the cluster."]
    assert set(ray.killed) >= set(ray.actors[1:])


def test_the_deadline_ends_a_run_for_which_there_is_no_room(ray: FakeRay, study: SweepStudy, said: list[str]) -> None:
    ray.room = 0
    run(job(deadline=time.time() + 0.5), said)
    assert states(study) == []


def test_a_worker_that_does_not_stop_is_not_waited_for(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(launch_ray, "STOP_SECONDS", 0.3)
    monkeypatch.setattr(ClusterWorker, "work", lambda *_: released.wait())
    try:
        run(job(), said, stop=lambda: bool(ray.actors))
    finally:
        released.set()
    assert said[1:] == ["a worker that did not stop within 0 s will be ended; trials go on from checkpoints."]


def test_who_is_lost_at_the_end_is_not_spoken_of(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(worker: ClusterWorker, *_: object) -> None:
        worker._asked.wait()
        raise RayError("the actor died because its node has died")

    monkeypatch.setattr(ClusterWorker, "work", vanish)
    run(job(), said, stop=lambda: bool(ray.actors))
    assert len(said) == 1


def test_a_fault_of_a_worker_ends_the_run(ray: FakeRay, study: SweepStudy, said: list[str]) -> None:
    with pytest.raises(DataError, match=r"^The data 'nowhere'"):
        run(job(data="nowhere"), said, workers=2)
    assert not ray.initialized


def test_a_fault_on_another_machine_names_it(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterWorker, "whereabouts", lambda _: ("other", launch_ray.__version__))
    with pytest.raises(DataError, match=r"^other: The data 'nowhere'"):
        run(job(data="nowhere"), said)


def test_a_node_that_lacks_what_others_have_holds_nobody_up(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, lacking = ClusterWorker.work, iter([UsageError("node-b: model 'mynet:build': it imports einops.")])
    monkeypatch.setattr(ClusterWorker, "work", lambda *asked: next(lacking, None) or work(*asked))
    run(job(), said, workers=2)
    assert states(study) == ["complete"] * 4
    assert said[1:] == ["node-b: model 'mynet:build': it imports einops. The other workers go on."]


def test_another_version_on_a_node_ends_the_run(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterWorker, "whereabouts", lambda _: ("other", "0.1"))
    with pytest.raises(ClusterError, match=r"^other: cifar-sweep 0\.1 is installed there"):
        run(job(), said)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (RayError("an error raised in its creation task\n\nNo module named 'cifar_sweep'"), "No module named"),
        (RayTaskError("traceback\nTypeError: what is that?"), r"Ray could not run a worker: TypeError: what is that\?"),
    ],
)
def test_what_would_fail_each_time_ends_the_run(
    failure: Exception, sentence: str, ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(ClusterWorker, "work", fail)
    with pytest.raises(ClusterError, match=sentence):
        run(job(), said)
    assert len(ray.actors) == 1


# A worker


def terms(**changes: Any) -> Terms:
    return Terms(**{"gpus": 0.0, "group": 1, "landmarks": (), "lease": None} | changes)


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ray, "SHARED_SECONDS", 0.0)
    monkeypatch.setattr(launch_ray, "TICK_SECONDS", 0.01)
    error = ClusterWorker().work(Job(SQLITE), terms(landmarks=(tmp_path / "artifacts" / ".run-1",)))
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"artifacts {tmp_path}/artifacts: not the folder of that name")


def test_groups_are_planned_where_they_are_trained(study: SweepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    done: list[Job] = []

    def choose(sweeps: Any, **wanted: Any) -> Plan:
        asked.append(wanted | {"sweeps": [sweep.size for sweep in sweeps]})
        return Plan(Split(1, 1), Groups(8, {}, 1000), 8)

    monkeypatch.setattr(launch_ray, "choose", choose)
    monkeypatch.setattr(launch_ray, "work", lambda job, stop: done.append(job))
    monkeypatch.setattr(launch_ray, "available_cores", lambda: 4)
    one = job(device="cpu", threads=1)
    assert ClusterWorker().work(one, terms(group=0)) is None
    assert ClusterWorker().work(one, terms(group=8, gpus=0.5)) is None
    wanted = {"device": "cpu", "threads": 1, "sweeps": [4]}
    # A GPU with all workers that share it: the plan has its memory shared out among them.
    assert asked == [wanted | {"group": 0, "workers": 1}, wanted | {"group": 8, "workers": 2}]
    assert [each.groups for each in done] == [Groups(8, {}, 250), Groups(8, {}, 1000)]
    assert [each.share for each in done] == [1.0, 0.5]


ON_A_NODE = """
import pickle, sys
job, terms = pickle.load(sys.stdin.buffer)
from cifar_sweep.work.ray import ClusterWorker
error = ClusterWorker().work(job, terms)
sys.exit(error and str(error))
"""


def test_a_network_of_ones_own_is_sent_to_the_nodes(
    ray: FakeRay, study: SweepStudy, said: list[str], small_data: ImageData,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Path("helper.py").write_text("from torch import nn\ndef last(n): return nn.Linear(3072, n)\n")
    text = "from torch.nn import *\nimport helper\ndef build(s): return Sequential(Flatten(), helper.last(s.classes))\n"
    Path("mynet.py").write_text(text)
    Path("own.toml").write_text(tiny(epochs=1).replace('"lenet"', '"mynet:build"'))
    data = facts(small_data, source="synthetic:500")
    code = {"mynet:build": fingerprint("mynet:build")}
    own = open_or_resume(study.storage, "own", load_sweep(Path("own.toml")), data=data, code=code)
    sent: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(ClusterWorker, "work", lambda _, *work: sent.append(work))
        run(job("own"), said)
    node = tmp_path / "node"  # one file is not there, the other one is another one
    node.mkdir()
    (node / "mynet.py").write_text("def build(shape): raise ValueError('another file')")
    Path("helper.py").unlink()
    [(there, known)] = sent
    given = pickle.dumps((there, replace(known, landmarks=())))
    finished = subprocess.run([sys.executable, "-c", ON_A_NODE], input=given, cwd=node, check=False)
    assert finished.returncode == 0
    assert states(own) == ["complete"] * 4


def test_the_lease_is_the_same_everywhere(
    ray: FakeRay, study: SweepStudy, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setenv("CIFAR_SWEEP_LEASE_SECONDS", "40")
    with monkeypatch.context() as patched:
        patched.setattr(ClusterWorker, "work", lambda _, job, terms: seen.append(terms.lease))
        run(job(), said)
    monkeypatch.setattr(launch_ray, "work", lambda job, stop: seen.append(os.environ["CIFAR_SWEEP_LEASE_SECONDS"]))
    assert ClusterWorker().work(job(threads=1), terms(lease="7")) is None
    assert seen == ["40", "7"]


# Real clusters

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def scenario(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], dict[str, Any]]]:
    """Runs a scenario of ray_cluster.py, and ends what it leaves behind."""
    # Under /tmp itself: Ray's sockets have a limit for the length of their names.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("CIFAR_SWEEP_LEASE_SECONDS", "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def run_it(which: str, url: str, name: str) -> dict[str, Any]:
        monkeypatch.setenv("CIFAR_SWEEP_STORAGE", url)
        command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py")), which, name]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        assert process.returncode == 0, err
        logs = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert len(logs) > 1000
        assert PASSWORD.encode() not in logs + (out + err).encode()
        return dict(json.loads(out.splitlines()[-1]))

    yield run_it
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """The processes that were started for the clusters in this folder, and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"RAY_TMPDIR={folder}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def continued(study: SweepStudy, lost: dict[str, Any]) -> bool:
    """Whether another worker went on with what this one had done, instead of doing it again."""
    trial = study.trials()[lost["number"]]
    curve = [epoch.seconds for epoch in trial.curve]
    return trial.deaths == 1 and curve[: len(lost["seconds"])] == lost["seconds"]


@pytest.mark.alone
@pytest.mark.slow
@needs_ray
def test_a_node_is_lost_and_every_trial_finishes(
    postgres_url: str, postgres_storage: Storage, name: str, small_data: ImageData, scenario: Callable[..., Any]
) -> None:
    study = begin(postgres_storage, name, small_data, trials=99, epochs=10, batch_size=4)
    seen = scenario("cluster", postgres_url.replace("postgres@", f"postgres:{PASSWORD}@"), name)
    assert seen["said"][0] == "Ray: 3 nodes with 2 cores and 2 GPUs; 3 workers with 1 cores and 0.5 GPU each"
    assert sum("was lost on" in sentence for sentence in seen["said"]) == 1
    assert set(states(study)) == {"complete"}
    assert seen["nodes"] == [2, 3]  # the third when it joined
    assert continued(study, seen["lost"])
    assert all(len(trial.curve) == 10 for trial in study.trials())


@pytest.mark.alone
@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(
    "CIFAR_SWEEP_FAULT_REPEATS" not in os.environ, reason="a second cluster: part of the whole fault runs"
)
def test_a_killed_worker_and_ctrl_c_on_this_machine(
    study: SweepStudy, small_data: ImageData, scenario: Callable[..., Any]
) -> None:
    begin(study.storage, "long", small_data, trials=4, epochs=200, batch_size=4)
    long = load(study.storage, "long")
    seen = scenario("machine", f"sqlite:///{Path('studies.db').absolute()}", "long")
    assert seen["signal"] == signal.SIGINT
    assert sum("was lost on" in sentence for sentence in seen["said"]) == 1
    assert set(states(long)) == {"waiting"}
    assert continued(long, seen["lost"])
    assert all(trial.owner is None for trial in long.trials())
