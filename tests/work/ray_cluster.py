"""Started by `test_ray.py` in a process of its own: a study on Ray, and what goes wrong meanwhile.

`python ray_cluster.py cluster|machine STUDY`, with the database in CIFAR_SWEEP_STORAGE. Prints what it saw as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cifar_sweep.study.opening import load, open_or_resume
from cifar_sweep.study.storage import open_existing
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.work import ray as launch_ray
from cifar_sweep.work.ray_cluster import check_request, set_environment
from cifar_sweep.work.signals import stop_on_signals
from cifar_sweep.work.worker import Job

STORE = 80_000_000

# What happens during a run: a generator that is asked for its next step twice a second, and yields while it waits.
Events = Iterator[None]


def in_training(study: SweepStudy) -> list[dict[str, Any]]:
    """The running trials: number, seconds of each epoch done, the worker's process, and its Ray node's process."""
    found = []
    for trial in study.trials():
        owner = trial.owner
        if trial.state == "running" and owner and (node := parent_of(owner.pid)):
            seconds = [epoch.seconds for epoch in trial.curve]
            found.append({"number": trial.number, "pid": owner.pid, "node": node, "seconds": seconds})
    return found


def two_epochs(trial: dict[str, Any]) -> bool:
    return len(trial["seconds"]) >= 2


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def run(
    name: str, *, on: str, workers: int, gpus: float, events: Callable[[SweepStudy, dict[str, Any]], Events]
) -> dict[str, Any]:
    """Run the study while `events` happen; what they, and the run, have to say."""
    seen: dict[str, Any] = {"said": []}
    storage = os.environ["CIFAR_SWEEP_STORAGE"]
    job = Job(storage, (name,), device="cpu")
    address = check_request(on, storage=storage, artifacts="", device="cpu", gpus=gpus)
    with closing(open_existing(storage)) as opened, stop_on_signals() as asked:
        happening = events(load(opened, name), seen)

        def stop() -> bool:
            next(happening, None)
            return asked()

        started = time.monotonic()
        launch_ray.run_on_ray(job, address, workers=workers, gpus=gpus, group=1, stop=stop, say=seen["said"].append)
        return seen | {"seconds": time.monotonic() - started, "signal": asked.signal}


def on_a_cluster(name: str) -> dict[str, Any]:
    """Two nodes train while a third worker waits; a third node comes; the first is lost in the middle of a trial."""
    set_environment(os.environ, joining=False)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE}
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first = cluster.add_node(**node)
    cluster.add_node(**node)
    raylet = first.all_processes["raylet"][0].process.pid

    def events(study: SweepStudy, seen: dict[str, Any]) -> Events:
        seen["nodes"] = []
        for count in (2, 3):
            while len({trial["node"] for trial in in_training(study)}) < count:
                yield
            seen["nodes"].append(count)
            if count == 2:
                cluster.add_node(**node)
        while not (begun := [each for each in in_training(study) if each["node"] == raylet and two_epochs(each)]):
            yield
        cluster.remove_node(first, allow_graceful=False)
        seen["lost"] = begun[0]
        while not study.trials()[begun[0]["number"]].is_finished:
            yield
        # Only now is it known how much is enough on this machine; two more, for those being asked for at this moment.
        enough = study.sweep.model_copy(update={"trials": len(study.trials()) + 2})
        open_or_resume(study.storage, name, enough, data=study.data)

    try:
        return run(name, on=f"ray://{cluster.address}", workers=3, gpus=0.5, events=events)
    finally:
        cluster.shutdown()


def on_this_machine(name: str) -> dict[str, Any]:
    """A cluster of the run's own: one of two workers is killed; then all processes get Ctrl-C, as from a terminal."""
    launch_ray.RESTART_SECONDS = 1.0

    def events(study: SweepStudy, seen: dict[str, Any]) -> Events:
        while not (begun := [each for each in in_training(study) if two_epochs(each)]):
            yield
        seen["lost"] = begun[0]
        os.kill(begun[0]["pid"], signal.SIGKILL)
        while len({each["pid"] for each in in_training(study)} - {begun[0]["pid"]}) < 2:
            yield
        os.killpg(0, signal.SIGINT)

    return run(name, on="ray", workers=2, gpus=0, events=events)


if __name__ == "__main__":
    scenario = {"cluster": on_a_cluster, "machine": on_this_machine}[sys.argv[1]]
    print(json.dumps(scenario(sys.argv[2])))
