"""Replay a search on a table of real curves: the product's own ask, report, freeze, prune and tell, in simulated time.

    python benchmarks/replay.py --table benchmarks/curves/joint.json.gz --strategy auto --replays 200 --json auto.json
    python benchmarks/replay.py --table FILE --strategy auto random tpe_median --workers 2 --group 8 --replays 50

Workers claim groups from a study, each group "trains" an epoch, its trials are reported, pruned, frozen or told, all by
the code that a sweep runs (`cifar_sweep/replay/engine.py`); only the database is one in memory, and an epoch's result
is the table's, by the rules in `cifar_sweep/replay/table.py`. Time is simulated: an epoch takes as long as a group of
its size takes at its batch size, relative to one trial alone (`speeds.json` beside the tables), and results come in the
order of that time.

A replay ends when its choice is within `--near` of the best setting, half a point, or when `--most-epochs` are spent.
The JSON has, for each replay, the epochs, the simulated seconds and the choice's true mean after each complete trial.
"""

import argparse
import heapq
import json
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import SPEEDS, Speeds, facts, noise, read
from cifar_sweep.replay.engine import Replay
from cifar_sweep.replay.table import Search, Table
from cifar_sweep.search import choice, chooser
from cifar_sweep.study.claim import Claim
from cifar_sweep.study.provenance import versions
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

ENDLESS = 100_000  # trials: a replay ends by its epochs
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {"strategy": "auto"},
    "auto_stop": {"strategy": "auto", "stop": "auto"},
    "random": {"sampler": "random", "pruner": "none"},
    "tpe_median": {"sampler": "tpe", "pruner": {"name": "median", "startup_trials": 5, "warmup_steps": 1}},
    "tpe_asha": {"sampler": "tpe", "pruner": "asha"},
    "tpe": {"sampler": "tpe", "pruner": "none"},
}


def sweep_of(table: Table, strategy: str) -> Sweep:
    """The sweep that the table is searched by."""
    about = {"name": table.name, "trials": ENDLESS, "fixed": table.fixed, "space": table.space}
    return parse(about | STRATEGIES[strategy], where=table.name)


@dataclass(order=True)
class Group:
    """A group that a worker trains: when its next epoch ends."""

    at: float
    worker: int
    claims: list[Claim] = field(compare=False)


class TimedReplay(Replay):
    """A replay by so many workers that train groups of at most so many trials, in simulated time.

    It ends when the epochs are spent, or when its choice is no further than `near` below the best of the table.
    """

    def __init__(
        self,
        table: Table,
        sweep: Sweep,
        *,
        seed: int,
        most_epochs: int,
        near: float,
        workers: int,
        group: int,
        speeds: Speeds,
    ) -> None:
        super().__init__(table, sweep, seed=seed)
        self.most_epochs, self.near, self.workers, self.size, self.speeds = most_epochs, near, workers, group, speeds

    def run(self) -> Search:
        under_way: list[Group] = []
        idle = list(range(self.workers))
        now = 0.0
        while self.search.spent < self.most_epochs and self.search.short() > self.near + 1e-9:
            waiting, idle = idle, []
            for worker in waiting:
                if claims := self.claim(worker, size=self.size, workers=self.workers):
                    heapq.heappush(under_way, Group(now + self._seconds(claims), worker, claims))
                else:
                    idle.append(worker)
            if not under_way:
                break
            group = heapq.heappop(under_way)
            now = self.search.seconds = group.at
            group.claims = self.epoch(group.claims)
            if group.claims:
                group.at += self._seconds(group.claims)
                heapq.heappush(under_way, group)
            else:
                idle.append(group.worker)
        return self.search

    def _seconds(self, claims: Sequence[Claim]) -> float:
        return self.speeds.epoch(claims[0].config.shape.batch_size, len(claims))


def replay(seed: int, *, options: argparse.Namespace, strategy: str) -> dict[str, Any]:
    """One replay, as plain data."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    table = read(options.table)
    started = time.perf_counter()
    sweep = sweep_of(table, strategy)
    limits = {name: getattr(options, name) for name in ("most_epochs", "near", "workers", "group")}
    search = TimedReplay(table, sweep, seed=seed, speeds=Speeds.read(options.speeds), **limits).run()
    took = time.perf_counter() - started
    spent = {"spent": search.spent, "seconds": search.seconds}
    trained = [(setting, epochs) for setting, epochs in zip(search.settings, search.trained, strict=True)]
    return spent | {"seed": seed, "trained": trained, "took": took, "events": search.events}


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
    parser.add_argument("--speeds", type=Path, default=SPEEDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="numbers of the strategy, to try")
    parser.add_argument("--told", action="store_true", help="a strategy learns which setting stood for its point")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_constants(options.set)
    for strategy in options.strategy:
        seeds = range(options.seed0, options.seed0 + options.replays)
        one = partial(replay, options=options, strategy=strategy)
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:
            replays = pool.map(one, seeds, chunksize=1) if options.processes > 1 else list(map(one, seeds))
        report(read(options.table), strategy, replays, options)


def report(table: Table, strategy: str, replays: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Print how soon the choice was near the best, and write the file."""
    for name, near in (("one noise", noise(table)), ("0.5 points", 0.005), ("2 points", 0.02)):
        reached = sorted(
            next((event[0] for event in each["events"] if event[2] >= table.best - near), math.inf) for each in replays
        )
        low, middle, high = (reached[round(share * (len(reached) - 1))] for share in (0.25, 0.5, 0.75))
        print(f"{table.name} {strategy}: within {name} after {middle} epochs ({low} to {high})", flush=True)
    for line in unfinished_by_length(table, replays):
        print(f"{table.name} {strategy}: {line}", flush=True)
    took = statistics.median(each["took"] for each in replays)
    print(f"{table.name} {strategy}: {len(replays)} replays, {took:.2f} s each", flush=True)
    if options.json:
        several = len(options.strategy) > 1
        path = options.json.with_stem(f"{options.json.stem}-{strategy}") if several else options.json
        settings = {name: getattr(options, name) for name in ("workers", "group", "set")}
        settings |= STRATEGIES[strategy]
        whole = {
            "table": facts(table, Speeds.read(options.speeds)),
            "strategy": strategy,
            "versions": versions(),
            "settings": settings,
        }
        path.write_text(json.dumps(whole | {"replays": list(replays)}))


def unfinished_by_length(table: Table, replays: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of trials whose settings are about as good, by thirds of the table: how many of each length were not finished.

    Empty where all trials have one length.
    """
    lengths = sorted(set(table.epochs))
    if len(lengths) == 1:
        return []
    order = sorted(range(len(table.true)), key=lambda k: table.true[k])
    third = {setting: 3 * place // len(order) for place, setting in enumerate(order)}
    lines = []
    for k, name in enumerate(("worst", "middle", "best")):
        told = []
        for length in lengths:
            alike = [
                epochs < length
                for each in replays
                for setting, epochs in each["trained"]
                if third[setting] == k and table.epochs[setting] == length
            ]
            told += [f"{length} epochs {statistics.mean(alike):.0%} of {len(alike)}"] if alike else []
        lines.append(f"not trained to the end, {name} third: {', '.join(told)}")
    return lines


if __name__ == "__main__":
    main()
