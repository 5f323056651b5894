"""Replay a search on a table of real curves: the product's own ask, report, freeze, prune and tell, in simulated time.

    python benchmarks/replay.py --table benchmarks/curves/joint.json.gz --strategy auto --replays 200 --json auto.json
    python benchmarks/replay.py --table FILE --strategy auto random tpe_median --workers 2 --group 8 --replays 50

Workers claim groups from a study, each group "trains" an epoch, its trials are reported, pruned, frozen or told, all by
the code that a sweep runs; only the database is one in memory, and an epoch's result is the table's (the rules are in
`curve_table.py`). Time is simulated: an epoch takes as long as a group of its size takes at its batch size, relative to
one trial alone (`speeds.json` beside the tables), and results come in the order of that time.

A replay ends when its choice is within `--near` of the best setting, half a point, or when `--most-epochs` are spent.
The JSON has, for each replay, the epochs, the simulated seconds and the choice's true mean after each complete trial.
"""

import argparse
import heapq
import json
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from curve_table import Search, Table
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from cifar_sweep.curve import EpochResult
from cifar_sweep.search import choice, chooser
from cifar_sweep.search.cube import Cube
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.provenance import versions
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.tables import Change
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

SPEEDS = Path(__file__).parent / "curves" / "speeds.json"
PRIOR_TRIALS, PRIOR_POINTS = 40, 5  # of the study that a prior comes from, and of it
ENDLESS = 100_000  # trials: a replay ends by its epochs
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {"strategy": "auto"},
    "random": {"sampler": "random", "pruner": "none"},
    "tpe_median": {"sampler": "tpe", "pruner": {"name": "median", "startup_trials": 5, "warmup_steps": 1}},
    "tpe_asha": {"sampler": "tpe", "pruner": "asha"},
    "tpe": {"sampler": "tpe", "pruner": "none"},
}


class MemoryStorage(Storage):
    """A study database in memory, for one process."""

    def __init__(self) -> None:
        self.shown = "memory"
        self.optuna = InMemoryStorage()  # type: ignore[assignment]

    def lock(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def load(self, name: str) -> optuna.Study:
        return optuna.load_study(storage=self.optuna, study_name=name)

    def holder(self, trial_id: int) -> tuple[TrialState | None, str | None]:
        trial = self.optuna.get_trial(trial_id)
        owner = trial.user_attrs.get("owner")
        return trial.state, owner["token"] if owner else None

    def report(self, trial: optuna.Trial, _token: str, change: Change) -> bool:
        self.write(trial, change)
        return True

    def write(self, trial: optuna.Trial, change: Change) -> None:
        for key, value in (dict.fromkeys(change.removed) | dict(change.attributes)).items():
            self.optuna.set_trial_user_attr(trial._trial_id, key, value)
        for step, value in change.values.items():
            self.optuna.set_trial_intermediate_value(trial._trial_id, step, value)
        trial._cached_frozen_trial.intermediate_values.update(change.values)

    def orphans(self, _study: optuna.Study) -> Sequence[int]:
        return ()

    def beat(self, trial_id: int) -> None:
        pass


@dataclass
class Speeds:
    """How long an epoch takes, relative to one trial alone at batch size 64: by batch size and group size."""

    relative: Mapping[int, Mapping[int, float]]

    @classmethod
    def read(cls, path: Path) -> "Speeds":
        stored = json.loads(path.read_text())["seconds_of_an_epoch"]
        return cls({int(size): {int(k): float(s) for k, s in row.items()} for size, row in stored.items()})

    def epoch(self, batch_size: int, members: int) -> float:
        """Seconds of an epoch of the whole group; between what was measured linear in the logarithms."""
        rows = [np.interp(math.log2(members), np.log2(list(row)), list(row.values())) for row in self.relative.values()]
        return float(np.interp(math.log2(batch_size), np.log2(list(self.relative)), rows))


@dataclass(order=True)
class Group:
    """A group that a worker trains: when its next epoch ends."""

    at: float
    worker: int
    claims: list[Claim] = field(compare=False)
    done: int = field(compare=False, default=0)


class Replay:
    """One sweep on a table."""

    def __init__(self, table: Table, sweep: Sweep, speeds: Speeds, options: argparse.Namespace, seed: int) -> None:
        self.search = Search(table, seed)
        self.sweep = sweep.model_copy(update={"seed": seed})
        data = {"name": table.name, "fingerprint": "", "classes": table.classes}
        self.study: SweepStudy = open_or_resume(MemoryStorage(), "replay", self.sweep, data=data, artifacts="none")
        self.study.set_prior(prior_of(table, self.sweep, options.prior, seed) if options.prior else ())
        self.chooser = chooser.Chooser(self.sweep)
        self.speeds, self.options = speeds, options
        self.curves: dict[int, list[dict[str, Any]]] = {}
        self.trials: dict[int, int] = {}  # a trial's number in the search
        owners = [Owner("replay", 0, 0.0, f"worker-{worker}") for worker in range(options.workers)]
        self.workers = [Worker(owner, "cpu", 1, "bf16") for owner in owners]

    def run(self) -> Search:
        """Search until the end."""
        under_way: list[Group] = []
        idle = list(range(len(self.workers)))
        now = 0.0
        while not self.over():
            idle = [worker for worker in idle if not self._begin(worker, now, under_way)]
            if not under_way:
                break
            group = heapq.heappop(under_way)
            now = self.search.seconds = group.at
            self._epoch(group)
            if group.claims and group.done < group.claims[0].until:
                group.at += self._time(group)
                heapq.heappush(under_way, group)
            else:
                self._end(group)
                idle.append(group.worker)
        return self.search

    def over(self) -> bool:
        return self.search.spent >= self.options.most_epochs or self.search.short() <= self.options.near + 1e-9

    def _begin(self, worker: int, now: float, under_way: list[Group]) -> bool:
        claims = self.study.claim(
            self.workers[worker],
            size=lambda _: self.options.group,
            workers=self.options.workers,
            choose=self.chooser.choose,
        )
        if not claims:
            return False
        for claim in claims:
            if claim.number not in self.trials:
                self.trials[claim.number] = self.search.begin(claim.config.to_dict())
                self.curves[claim.number] = []
        group = Group(now, worker, claims, done=len(claims[0].curve))
        group.at += self._time(group)
        heapq.heappush(under_way, group)
        return True

    def _time(self, group: Group) -> float:
        return self.speeds.epoch(group.claims[0].config.shape.batch_size, len(group.claims))

    def _epoch(self, group: Group) -> None:
        group.done += 1
        staying = []
        for claim in group.claims:
            accuracy = self.search.epoch(self.trials[claim.number])
            point = EpochResult(group.done, 0.0, 0.0, 0.0, accuracy, claim.config.knobs.learning_rate, 1.0)
            self.curves[claim.number].append(asdict(point))
            self.study.report(claim, self.curves[claim.number])
        for claim in group.claims:
            if group.done < claim.config.shape.epochs and self.study.should_prune(claim):
                self.study.prune(claim, "pruned")
            else:
                staying.append(claim)
        group.claims = staying

    def _end(self, group: Group) -> None:
        for claim in group.claims:
            if group.done == claim.config.shape.epochs:
                self.study.complete(claim, max(point["validation_accuracy"] for point in claim.curve))
            else:
                self.study.release(claim)


def prior_of(table: Table, sweep: Sweep, kind: str, seed: int) -> list[dict[str, Any]]:
    """What another study would give as a prior: the best of its trials, which were trained for a third of the epochs.

    A wrong one is that of the reversed space: what is best is said to be at the other end of each range.
    """
    generator = np.random.default_rng(seed + 1_000_000)
    tried = generator.choice(len(table.settings), size=PRIOR_TRIALS, replace=False).tolist()
    tried.sort(key=lambda k: -max(table.curves[k][0][: max(1, table.epochs[k] // 3)]))
    best = [table.settings[k] for k in tried[:PRIOR_POINTS]]
    cube = Cube(sweep)
    return best if kind == "good" else [cube.params([1 - 1e-9 - share for share in cube.shares(at)]) for at in best]


def sweep_of(table: Table, strategy: str) -> Sweep:
    """The sweep that the table is searched by."""
    about = {"name": table.name, "trials": ENDLESS, "fixed": table.fixed, "space": table.space}
    return parse(about | STRATEGIES[strategy], where=table.name)


def replay(seed: int, *, options: argparse.Namespace, strategy: str) -> dict[str, Any]:
    """One replay, as plain data."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    table = Table.read(options.table)
    started = time.perf_counter()
    search = Replay(table, sweep_of(table, strategy), Speeds.read(options.speeds), options, seed).run()
    took = time.perf_counter() - started
    spent = {"spent": search.spent, "seconds": search.seconds}
    return spent | {"seed": seed, "trials": len(search.trained), "took": took, "events": search.events}


def set_constants(words: Sequence[str]) -> None:
    """Change numbers of the strategy, for experiments: `HOPELESS=0.05`, `GRANTS=0.1,0.5,1`."""
    for name, _, value in (word.partition("=") for word in words):
        if name == "GRANTS":
            choice.GRANTS = tuple(map(float, value.split(",")))
        else:
            setattr(chooser, name, type(getattr(chooser, name))(float(value)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--strategy", nargs="+", choices=list(STRATEGIES), default=["auto"])
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--seed0", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="that search together")
    parser.add_argument("--group", type=int, default=1, help="trials that a worker trains at once")
    parser.add_argument("--most-epochs", type=int, default=1500)
    parser.add_argument("--near", type=float, default=0.005, help="a replay ends when its choice is so near the best")
    parser.add_argument("--prior", choices=["good", "wrong"], help="points of another study that the search is given")
    parser.add_argument("--speeds", type=Path, default=SPEEDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="numbers of the strategy, to try")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_constants(options.set)
    for strategy in options.strategy:
        seeds = range(options.seed0, options.seed0 + options.replays)
        one = partial(replay, options=options, strategy=strategy)
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:
            replays = pool.map(one, seeds, chunksize=1) if options.processes > 1 else list(map(one, seeds))
        report(Table.read(options.table), strategy, replays, options)


def report(table: Table, strategy: str, replays: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Print how soon the choice was near the best, and write the file."""
    for name, near in (("one noise", table.noise), ("0.5 points", 0.005), ("2 points", 0.02)):
        reached = sorted(
            next((event[0] for event in each["events"] if event[2] >= table.best - near), math.inf) for each in replays
        )
        low, middle, high = (reached[round(share * (len(reached) - 1))] for share in (0.25, 0.5, 0.75))
        print(f"{table.name} {strategy}: within {name} after {middle} epochs ({low} to {high})", flush=True)
    took = statistics.median(each["took"] for each in replays)
    print(f"{table.name} {strategy}: {len(replays)} replays, {took:.2f} s each", flush=True)
    if options.json:
        several = len(options.strategy) > 1
        path = options.json.with_stem(f"{options.json.stem}-{strategy}") if several else options.json
        settings = {
            "workers": options.workers,
            "group": options.group,
            "prior": options.prior,
            "set": options.set,
        } | STRATEGIES[strategy]
        whole = {"table": table.facts(), "strategy": strategy, "versions": versions(), "settings": settings}
        path.write_text(json.dumps(whole | {"replays": list(replays)}))


if __name__ == "__main__":
    main()
