"""What training K trials as one network costs the search, and which rule for K costs it least.

A group of K trials is asked for at once: the first ask is free and fixes the shape, the others are asked with what
decides the shape held. None of the K knows a result of the others. `table` trains a grid of learning rate by batch size
under several seeds; `search` lets Optuna search that grid many times over in simulated time, with two workers, each
group taking as long as K trials take at the measured speed of such a group, and compares rules for the size of a group.
Nothing is pruned in the simulation.

    python benchmarks/group_search.py table --out table.json [--data FOLDER] [--train-images 8000] [--epochs 4]
    python benchmarks/group_search.py search --landscape table.json [--seeds 100] [--rules 1 4 16] [--json FILE]

`--landscape shapes` is a formula over 60 shapes and three knobs, `--landscape knobs` the same with one shape: made up,
and no training.
"""

import argparse
import heapq
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.trial import FrozenTrial

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.study.provenance import commit, versions
from cifar_sweep.sweep import space, strategy
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training.device import prepare_process
from cifar_sweep.training.images import data as images
from cifar_sweep.training.train import Run

BATCH_SIZES = (16, 32, 64, 128, 256)
LEARNING_RATES = tuple(float(f"{rate:.4g}") for rate in np.logspace(-5, -1, 13))
LR_BATCH_SPACE = {
    "learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
    "batch_size": {"low": 16, "high": 256, "base2": True},
}
LARGEST = 16
STARTUP = 10  # random trials before the sampler's model is used: the product's default
ENOUGH = 240  # trials after which a search for the target is given up

# Images per second of a group of K `convnet` over those of one alone, by batch size; measured on 2 cores in bf16, with
# one thread for a group, with and without batch norm. Between the entries: linear in the logarithms of K and batch
# size. Above batch 128: as there.
SPEED_UP = {16: {1: 1.0, 2: 1.6, 4: 2.35, 8: 4.7, 16: 5.25}, 128: {1: 1.0, 2: 1.57, 4: 2.05, 8: 3.55, 16: 3.65}}


# The table


def train_table(data: images.ImageData, options: argparse.Namespace) -> dict[str, Any]:
    """Train the grid: one group of all learning rates for each batch size and seed, on one order of the batches."""

    def configs(batch_size: int, seed: int, rates: Sequence[float]) -> list[TrialConfig]:
        settings = {"model": "convnet", "batch_size": batch_size, "epochs": options.epochs}
        settings["train_images"] = options.train_images
        common = {"classes": len(data.classes), "precision": "bf16", "data_seed": derive_seed(0, "data")}
        return [
            TrialConfig.from_params(settings | {"learning_rate": rate}, **common, seed=derive_seed(0, "table", seed, k))
            for k, rate in enumerate(rates)
        ]

    device = torch.device("cpu")
    runs, seconds = [], {}
    for batch_size in BATCH_SIZES:
        alone = Run(configs(batch_size, 0, [1e-3]), data, device=device)
        # The least: the machine may have other work.
        seconds[str(batch_size)] = min(alone.epoch()[0].seconds for _ in range(5))
        for seed in range(options.seeds):
            run = Run(configs(batch_size, seed, LEARNING_RATES), data, device=device)
            epochs = [[result.validation_accuracy for result in run.epoch()] for _ in range(options.epochs)]
            curves = zip(LEARNING_RATES, zip(*epochs, strict=True), strict=True)
            runs += [
                {"batch_size": batch_size, "seed": seed, "learning_rate": rate, "validation_accuracy": list(curve)}
                for rate, curve in curves
            ]
            print(f"batch {batch_size}, seed {seed}: best {max(max(row) for row in epochs):.2%}", flush=True)
    return {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "model": "convnet",
        "epochs": options.epochs,
        "train_images": options.train_images,
        "seconds_of_an_epoch_alone": seconds,
        "runs": runs,
        "commit": commit(),
        "versions": versions(),
    }


# Landscapes: what a trial of these parameters comes to, and how long it takes alone


class Landscape(Protocol):
    """A space, with the true mean accuracy everywhere in it, in points."""

    sweep: Sweep
    best: float
    noise: float  # the standard deviation of one training about its mean

    def accuracy(self, params: Mapping[str, Any]) -> float:
        """The mean accuracy over seeds."""

    def seconds(self, params: Mapping[str, Any]) -> float:
        """The time of one trial, trained alone."""


class Table:
    """The trained grid: means over seeds, each averaged with its two neighbours in learning rate (1/4, 1/2, 1/4), since
    the mean of a few seeds is rough itself; between learning rates linear in their logarithm.
    """

    def __init__(self, table: Mapping[str, Any], *, noise: float | None = None) -> None:
        self.sweep = sweep({"model": "convnet", "epochs": table["epochs"]}, LR_BATCH_SPACE)
        runs: dict[tuple[int, float], list[float]] = {}
        for run in table["runs"]:
            cell = runs.setdefault((run["batch_size"], run["learning_rate"]), [])
            cell.append(100 * max(run["validation_accuracy"]))
        rates = sorted({rate for _, rate in runs})
        self.logs = [math.log(rate) for rate in rates]
        self.means = {
            size: smooth([statistics.mean(runs[size, rate]) for rate in rates])
            for size in sorted({size for size, _ in runs})
        }
        self.best = max(max(row) for row in self.means.values())
        # Cells far below the best are quieter or wilder than those that the choice is between.
        near = [cell for cell in runs.values() if statistics.mean(cell) > self.best - 5]
        measured = math.sqrt(statistics.mean(statistics.variance(cell) for cell in near))
        self.noise = measured if noise is None else noise
        self.alone = {int(size): seconds for size, seconds in table["seconds_of_an_epoch_alone"].items()}
        self.epochs = int(table["epochs"])

    def accuracy(self, params: Mapping[str, Any]) -> float:
        row = self.means[int(params["batch_size"])]
        return float(np.interp(math.log(params["learning_rate"]), self.logs, row))

    def seconds(self, params: Mapping[str, Any]) -> float:
        return self.alone[int(params["batch_size"])] * self.epochs


class MadeUp:
    """A formula with 60 shapes, or one, and three knobs. The best learning rate moves with batch size and optimizer."""

    best = 70.0
    centre: ClassVar = {"sgd": -2.0, "adam": -3.2, "rmsprop": -3.5}
    loss: ClassVar = {"sgd": 1.0, "adam": 0.0, "rmsprop": 0.6, "relu": 0.0, "leaky_relu": 0.3, True: 0.0, False: 2.0}

    def __init__(self, *, shapes: bool, noise: float | None = None) -> None:
        self.noise = 0.5 if noise is None else noise
        rate = {"learning_rate": LR_BATCH_SPACE["learning_rate"]}
        knobs = {"dropout": {"low": 0.0, "high": 0.5}, "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True}}
        if not shapes:
            shape = {"batch_size": 32, "optimizer": "adam", "activation": "relu", "batch_norm": True}
            self.sweep = sweep({"model": "convnet"} | shape, rate | knobs)
            return
        choices = {"optimizer": ["sgd", "adam", "rmsprop"], "activation": ["relu", "leaky_relu"]}
        decided = {name: {"choices": values} for name, values in (choices | {"batch_norm": [False, True]}).items()}
        self.sweep = sweep({"model": "convnet"}, LR_BATCH_SPACE | decided | knobs)

    def accuracy(self, params: Mapping[str, Any]) -> float:
        size = math.log2(params["batch_size"])
        centre = self.centre[params["optimizer"]] + 0.15 * (size - 5)
        rate = math.log10(params["learning_rate"]) - centre
        loss = sum(self.loss[params[name]] for name in ("optimizer", "activation", "batch_norm"))
        loss += 0.5 * (size - 5) ** 2 + 8 * rate**2 + 40 * (params["dropout"] - 0.2) ** 2
        loss += 0.8 * (math.log10(params["weight_decay"]) + 4) ** 2
        return max(10.0, self.best - loss)

    def seconds(self, params: Mapping[str, Any]) -> float:
        return 1.0 + 8 / float(params["batch_size"])


def smooth(row: Sequence[float]) -> list[float]:
    """Each value averaged with its neighbours; the ends stand for their missing ones."""
    return [float(mean) for mean in np.convolve(np.pad(row, 1, mode="edge"), (0.25, 0.5, 0.25), mode="valid")]


def sweep(fixed: Mapping[str, Any], searched: Mapping[str, Any]) -> Sweep:
    """A sweep as the product reads it, so that its own suggestions are made."""
    sampler = {"name": "tpe", "startup_trials": STARTUP}
    return parse({"name": "group", "sampler": sampler, "fixed": dict(fixed), "space": dict(searched)}, where="group")


def speed_up(size: int, batch_size: int) -> float:
    """How many times faster a group of this size trains than its trials one at a time."""
    at = [float(np.interp(math.log2(size), np.log2(list(row)), list(row.values()))) for row in SPEED_UP.values()]
    return float(np.interp(math.log2(batch_size), np.log2(list(SPEED_UP)), at))


# Rules


@dataclass(frozen=True)
class Situation:
    """What a worker knows when it asks."""

    finished: int
    running: int
    budget: int
    workers: int

    @property
    def left(self) -> int:
        return self.budget - self.finished - self.running


@dataclass(frozen=True)
class Rule:
    """How large the next group may be, and how its trials are asked for: held, mixed or conditional."""

    size: Callable[[Situation], float]
    way: str = "held"


def fixed(size: int) -> Callable[[Situation], float]:
    """Always so many."""
    return lambda _: size


def share(part: float, *, least: int = 1, largest: int = LARGEST) -> Callable[[Situation], float]:
    """All workers' groups together come to this part of what is finished."""
    return lambda now: min(largest, max(least, part * now.finished / now.workers))


def flight(part: float, *, largest: int = LARGEST) -> Callable[[Situation], float]:
    """All that is asked and not answered, this group included, comes to this part of what is finished."""
    return lambda now: min(largest, part * now.finished - now.running)


def filled(size: Callable[[Situation], float], under_way: int) -> Callable[[Situation], float]:
    """As `size` says, but at least what brings all workers' groups together to so many trials."""
    return lambda now: max(size(now), under_way / now.workers)


def after(start: int, size: int) -> Callable[[Situation], float]:
    """One at a time until so many are finished, then groups."""
    return lambda now: size if now.finished >= start else 1


def at_once(size: Callable[[Situation], float], *, start: int = STARTUP) -> Callable[[Situation], float]:
    """As `size` says, but the random trials of the start in one group for each worker: they learn from no result."""

    def first(now: Situation) -> float:
        started = now.finished + now.running
        return max(size(now), min(math.ceil(start / now.workers), start - started))

    return first


def powers(size: Callable[[Situation], float]) -> Callable[[Situation], float]:
    """As `size` says, rounded to the nearest power of two: groups of these are the fastest."""
    return lambda now: 2 ** round(math.log2(max(1.0, size(now))))


def spread(size: Callable[[Situation], float], rounds: int) -> Callable[[Situation], float]:
    """As `size` says, but what is left is enough for so many rounds of all workers."""
    return lambda now: min(size(now), math.ceil(now.left / (rounds * now.workers)))


RULES: dict[str, Rule] = {
    **{str(size): Rule(fixed(size)) for size in (1, 2, 4, 8, 16)},
    "share 1/4": Rule(share(1 / 4)),
    "share 1/2": Rule(share(1 / 2)),
    "share 1": Rule(share(1)),
    "share 1/2, to 4": Rule(share(1 / 2, largest=4)),
    "share 1/2, to 8": Rule(share(1 / 2, largest=8)),
    **{f"share 1/2, from {least}": Rule(share(1 / 2, least=least)) for least in (2, 4)},
    **{f"share 1, from {least}": Rule(share(1, least=least)) for least in (2, 4)},
    "in flight 1/2": Rule(flight(1 / 2)),
    "share 1/2, even end": Rule(spread(share(1 / 2), 1)),
    "share 1, even end": Rule(spread(share(1), 1)),
    "share 1/2, two rounds at the end": Rule(spread(share(1 / 2), 2)),
    "share 1, two rounds at the end": Rule(spread(share(1), 2)),
    "share 1/2, to 8, even end": Rule(spread(share(1 / 2, largest=8), 1)),
    "share 1, to 8, even end": Rule(spread(share(1, largest=8), 1)),
    "share 1, even end, start at once": Rule(spread(at_once(share(1)), 1)),
    "share 1, powers of two, start at once": Rule(spread(powers(at_once(share(1))), 1)),
    "share 1, powers of two, start of 16 at once": Rule(spread(powers(at_once(share(1), start=16)), 1)),
    "share 1 or 16 under way, powers of two": Rule(spread(powers(filled(share(1), 16)), 1)),
    "share 1/2, powers of two": Rule(spread(powers(share(1 / 2)), 1)),
    "share 1/2, even end, start at once": Rule(spread(at_once(share(1 / 2)), 1)),
    **{f"1, then {size}": Rule(after(STARTUP, size)) for size in (4, 8, 16)},
    **{f"{size} mixed": Rule(fixed(size), "mixed") for size in (4, 16)},
    "share 1/2 mixed": Rule(share(1 / 2), "mixed"),
    **{f"{size} conditional": Rule(fixed(size), "conditional") for size in (4, 16)},
    "share 1/2 conditional": Rule(share(1 / 2), "conditional"),
}


# The search


class Conditional(BaseSampler):
    """The base sampler's joint samples, drawn again until one has the held values; after `TRIES`, they are held."""

    TRIES = 24

    def __init__(self, held: dict[str, Any], base: BaseSampler) -> None:
        self.held = held
        self.base = base
        self.fallback = PartialFixedSampler(held, base)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.base.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for _ in range(self.TRIES):
            params = self.base.sample_relative(study, trial, search_space)
            if all(params.get(name) == value for name, value in self.held.items()):
                return params
            if not params:
                break
        rest = {name: domain for name, domain in search_space.items() if name not in self.held}
        return self.base.sample_relative(study, trial, rest)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.fallback.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, *arguments: Any) -> None:
        self.base.after_trial(*arguments)


@dataclass
class Search:
    """One search in simulated time. `events`: after each group, the time, the trials done, the accuracy chosen."""

    landscape: Landscape
    rule: Rule
    budget: int
    seed: int
    workers: int = 2
    free: bool = False  # whether a group takes no longer than one trial
    until: Callable[["Search"], bool] = lambda _: False
    now: float = 0.0
    asked: int = 0
    finished: int = 0
    groups: list[int] = field(default_factory=list)
    chosen: tuple[float, float] = (-math.inf, -math.inf)  # its value in the study, its true mean
    events: list[tuple[float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.study = optuna.create_study(direction="maximize")

    def run(self) -> "Search":
        """Work until the budget is spent, or `until` says so."""
        order = 0
        pending: list[tuple[float, int, list[optuna.Trial], Iterator[list[optuna.Trial]]]] = []

        def start(parts: Iterator[list[optuna.Trial]]) -> None:
            nonlocal order
            part = next(parts, None)
            if part is None:
                if self.asked >= self.budget:
                    return
                parts = iter(self.ask())
                part = next(parts)
            order += 1
            heapq.heappush(pending, (self.now + self.time(part), order, part, parts))

        for _ in range(self.workers):
            start(iter(()))
        while pending and not self.until(self):
            self.now, _, part, parts = heapq.heappop(pending)
            self.tell(part)
            start(parts)
        return self

    def ask(self) -> list[list[optuna.Trial]]:
        """The next trials, in groups of equal shape, to be trained one group after the other."""
        now = Situation(self.finished, self.asked - self.finished, self.budget, self.workers)
        size = min(max(1, int(self.rule.size(now))), now.left)
        trials = [self.ask_one({})]
        held = {} if self.rule.way == "mixed" else space.shape_params(trials[0].params)
        trials += [self.ask_one(held) for _ in range(size - 1)]
        groups: dict[tuple[Any, ...], list[optuna.Trial]] = {}
        for trial in trials:
            groups.setdefault(tuple(space.shape_params(trial.params).values()), []).append(trial)
        return list(groups.values())

    def ask_one(self, held: dict[str, Any]) -> optuna.Trial:
        """One trial, with its own seed for the sampler as in the product."""
        sweep = self.landscape.sweep.model_copy(update={"seed": self.seed})
        sampler = strategy.build_sampler(sweep, number=self.asked)
        if held:
            sampler = (Conditional if self.rule.way == "conditional" else PartialFixedSampler)(held, sampler)
        self.study.sampler = sampler
        trial = self.study.ask()
        space.suggest(trial, self.landscape.sweep)
        self.asked += 1
        return trial

    def time(self, group: Sequence[optuna.Trial]) -> float:
        """How long this group trains."""
        params = self.params(group[0])
        alone = self.landscape.seconds(params)
        return alone if self.free else len(group) * alone / speed_up(len(group), int(params["batch_size"]))

    def params(self, trial: optuna.Trial) -> dict[str, Any]:
        """All that the trial is trained with, under the product's names."""
        return self.landscape.sweep.fixed | space.decode(trial.params)

    def tell(self, group: Sequence[optuna.Trial]) -> None:
        """Every trial's mean with the noise of one training."""
        for trial in group:
            mean = self.landscape.accuracy(self.params(trial))
            noise = np.random.default_rng(derive_seed(self.seed, "noise", trial.number)).normal()
            value = mean + self.landscape.noise * float(noise)
            self.study.tell(trial, value)
            self.chosen = max(self.chosen, (value, mean))
        self.finished += len(group)
        self.groups.append(len(group))
        self.events.append((self.now, self.finished, self.chosen[1]))


@dataclass(frozen=True)
class Figures:
    """What one rule came to over all seeds."""

    rule: str
    trials_to: dict[str, list[float]]  # by the distance to the best, in points; infinity where it was not reached
    seconds_to: dict[str, list[float]]
    short_after: dict[str, list[float]]  # points short of the best: after so many trials, and after an equal time
    seconds_of: dict[str, list[float]]  # the time of these numbers of trials
    trials_in_time: list[float]
    group_size: float  # the mean over the trials of the search for the target: of whose group a trial was one


def measure(landscape: Landscape, name: str, options: argparse.Namespace, *, time_given: float) -> Figures:
    """Search under every seed: to each budget of trials, and for the target and the equal time."""
    best, seeds, budgets = landscape.best, range(options.seeds), options.budgets
    search_for = partial(Search, landscape, RULES[name], workers=options.workers, free=options.free_members)
    figures = Figures(name, {"0.5": [], "1.0": []}, {"0.5": [], "1.0": []}, {}, {}, [], 0.0)
    for budget in budgets:
        done = [search_for(budget, seed).run() for seed in seeds]
        figures.short_after[str(budget)] = [best - search.events[-1][2] for search in done]
        figures.seconds_of[str(budget)] = [search.events[-1][0] for search in done]
    given = time_given or statistics.median(figures.seconds_of[str(budgets[0])])

    def over(search: Search) -> bool:
        return search.now > given and any(event[2] >= best - 0.5 for event in search.events)

    sizes: list[int] = []
    for seed in seeds:
        search = search_for(ENOUGH, seed, until=over).run()
        for points in figures.trials_to:
            hit = next((event for event in search.events if event[2] >= best - float(points)), None)
            figures.trials_to[points].append(hit[1] if hit else math.inf)
            figures.seconds_to[points].append(hit[0] if hit else math.inf)
        within = [(0.0, 0, 0.0), *(event for event in search.events if event[0] <= given)]
        figures.short_after.setdefault("time", []).append(best - within[-1][2])
        figures.trials_in_time.append(within[-1][1])
        sizes += [size for size in search.groups for _ in range(size)]
    return Figures(**(vars(figures) | {"group_size": statistics.mean(sizes)}))


# The report


def quartiles(values: Sequence[float], form: str) -> str:
    """Median, and the quartiles in brackets; what was not reached stands above all that was."""
    low, middle, high = (sorted(values)[round(q * (len(values) - 1))] for q in (0.25, 0.5, 0.75))
    shown = ["never" if value == math.inf else format(value, form) for value in (middle, low, high)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def mean_error(values: Sequence[float]) -> str:
    """Mean and its standard error."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def rows(figures: Figures, unit: float) -> list[str]:
    """A rule's row: times in units of the time given."""
    times = {points: [second / unit for second in seconds] for points, seconds in figures.seconds_to.items()}
    return [
        figures.rule,
        *(quartiles(figures.trials_to[points], ".0f") for points in ("1.0", "0.5")),
        *(quartiles(times[points], ".2f") for points in ("1.0", "0.5")),
        *(mean_error(values) for values in figures.short_after.values()),
        *(f"{statistics.median(seconds) / unit:.2f}" for seconds in figures.seconds_of.values()),
        f"{statistics.median(figures.trials_in_time):.0f}",
    ]


def search_all(options: argparse.Namespace) -> None:
    """Every rule against every seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    noise = options.noise
    landscape: Landscape = (
        MadeUp(shapes=options.landscape == "shapes", noise=noise)
        if options.landscape in ("shapes", "knobs")
        else Table(json.loads(Path(options.landscape).read_text()), noise=noise)
    )
    started = time.perf_counter()
    print(f"best {landscape.best:.2f} %, noise {landscape.noise:.2f} points, "
          f"{options.seeds} seeds, {options.workers} workers, optuna {optuna.__version__}")  # fmt: skip
    head = ["rule", "trials to 1.0", "trials to 0.5", "time to 1.0", "time to 0.5"]
    head += [f"short after {budget} trials" for budget in options.budgets] + ["short after time 1"]
    head += [f"time of {budget}" for budget in options.budgets] + ["trials in time 1"]
    print("| " + " | ".join(head) + " |", "|" + "---|" * len(head), sep="\n")
    unit, report = 0.0, []
    for name in ("1", *(rule for rule in options.rules if rule != "1")):
        figures = measure(landscape, name, options, time_given=unit)
        unit = unit or statistics.median(figures.seconds_of[str(options.budgets[0])])
        print("| " + " | ".join(rows(figures, unit)) + " |", flush=True)
        report.append(vars(figures))
    print(f"time: 1 is what one at a time takes for {options.budgets[0]} trials; "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    if options.json:
        about = {"best": landscape.best, "noise": landscape.noise, "unit": unit, "seeds": options.seeds}
        options.json.write_text(json.dumps(about | {"rules": report}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("--data", default="synthetic:10000")
    table.add_argument("--out", type=Path, required=True)
    table.add_argument("--train-images", type=int, default=8000)
    table.add_argument("--epochs", type=int, default=4)
    table.add_argument("--seeds", type=int, default=3)
    search = commands.add_parser("search")
    search.add_argument("--landscape", default="shapes", help="a table's file; or shapes or knobs, made up")
    search.add_argument("--seeds", type=int, default=100)
    search.add_argument("--budgets", type=int, nargs="+", default=[40, 80])
    search.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    search.add_argument("--workers", type=int, default=2)
    search.add_argument("--free-members", action="store_true", help="a group takes as long as one trial: the bound")
    search.add_argument("--noise", type=float, help="of one training, in points; by default as measured in the table")
    search.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "search":
        search_all(options)
        return
    prepare_process(torch.device("cpu"), threads=1)
    result = train_table(images.load(options.data), options)
    options.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
