"""Let peers search a table of real curves with their own code; random and one-epoch search as well.

The rules are those of `cifar_sweep/replay/table.py`.

    python benchmarks/peers/replay_peers.py --table benchmarks/curves/joint.json.gz --strategy optuna_tpe_median \
        --replays 200 --json joint-median.json [--seed0 0] [--processes 2] [--most-epochs 1500] [--near 0.0]

With several strategies the file of each has its name before the suffix: `joint-random.json`. A replay trains one epoch
of one trial at a time. It ends when the choice is no further than `--near` below the best setting, by default the best
itself, or when the epochs are spent. It is the same each time for the same seed, table and versions.
`benchmarks/compare_replays.py` compares the files.

What is the same for all peers:

- They are told the best validation accuracy so far, after each epoch: it is what the choice is made by.
- Every proposal is a new trial, which a setting stands for. They are told what came of it, and which setting it was.
- A range has an even scale: logarithms for a logarithmic range, exponents for powers of two, places in the list for
  choices that are numbers. Momentum is always proposed, also for Adam, which has none.
- A trial's budget is its setting's own epochs; the unit of a rung is one epoch.

Which settings each peer has and why is written at `STRATEGIES`. The peers' packages are in `requirements.txt`;
random and one-epoch search need numpy and pydantic alone.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np

from benchmarks.tables import Speeds, batch_size, facts, read
from cifar_sweep.replay.table import Search, Table

EQUAL = 1e-9  # true means no further apart are the same
Work = Callable[[], None]  # trains one more trial, or one more round of trials


class EndedError(Exception):
    """The replay is over; raised inside the peer's loop."""


class Clock:
    """Simulated time of workers, which are threads: only the one whose time is the least goes on.

    So results come in the order of their time, and a replay is the same each time.
    """

    def __init__(self, workers: int) -> None:
        self._times = [0.0] * workers
        self._turn = threading.Condition()
        self._is_over = False
        self._of = threading.local()
        self._failed: Exception | None = None

    def run(self, work: Work) -> None:
        """Let all workers work until the replay is over."""
        threads = [threading.Thread(target=self._work, args=(worker, work)) for worker in range(len(self._times))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed

    def _work(self, worker: int, work: Work) -> None:
        self._of.worker = worker
        try:
            self.pass_by(0.0)
            while True:
                work()
        except EndedError:
            pass
        except Exception as error:
            self._failed = error
        finally:
            with self._turn:
                self._is_over = True
                self._turn.notify_all()

    def pass_by(self, seconds: float) -> float:
        """Let time pass for the worker that asks: its time then. Raises EndedError if the replay is over meanwhile."""
        worker = self._of.worker
        with self._turn:
            self._times[worker] += seconds
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._is_over or self._times.index(min(self._times)) == worker)
            if self._is_over:
                raise EndedError
            return self._times[worker]


@dataclass
class Replay(Search):
    """A search that ends itself, and tells what peers are told."""

    most_epochs: int = 1500
    near: float = 0.0  # it ends when the choice's true mean is no further below the best
    clock: Clock = field(default_factory=lambda: Clock(1))
    speeds: Speeds = field(default_factory=Speeds.read)
    shown: list[float] = field(default_factory=list)  # each trial's best validation accuracy so far

    def start(self, params: Mapping[str, Any]) -> int:
        """The number of a new trial with these parameters."""
        self.shown.append(0.0)
        return self.begin(params)

    def train(self, trial: int) -> float:
        """Train one more epoch: the trial's best validation accuracy so far."""
        self.seconds = self.clock.pass_by(self.speeds.epoch(batch_size(self.table, self.settings[trial]), 1))
        self.shown[trial] = max(self.shown[trial], self.epoch(trial))
        if self.spent >= self.most_epochs or self.has_found():
            raise EndedError
        return self.shown[trial]

    def is_done(self, trial: int) -> bool:
        """Whether it was trained to its last epoch."""
        return self.trained[trial] == self.epochs(trial)

    def has_found(self) -> bool:
        """Whether the choice is near enough to the best."""
        return self.short() <= self.near + EQUAL


@dataclass(frozen=True)
class Knob:
    """A parameter on an even scale: a range from `low` to `high`, or choices without an order.

    Attributes:
        whole: only whole numbers.
        scale: what the numbers are: the `value` itself, its logarithm (`log`), an exponent of two (`base2`), or the
            place in a list of numbers (`place`).
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    scale: str = "value"
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, domain: Mapping[str, Any]) -> "Knob":
        """The knob for a domain of a sweep's file."""
        if "choices" in domain:
            choices = tuple(domain["choices"])
            if isinstance(choices[0], (str, bool)):
                return cls(name, choices=choices)
            return cls(name, 0, len(choices) - 1, whole=True, scale="place", choices=choices)
        low, high = domain["low"], domain["high"]
        if domain.get("base2"):
            return cls(name, round(np.log2(low)), round(np.log2(high)), whole=True, scale="base2")
        if domain.get("log"):
            return cls(name, float(np.log10(low)), float(np.log10(high)), scale="log")
        return cls(name, low, high, whole=isinstance(low, int))

    @property
    def is_range(self) -> bool:
        return self.scale == "place" or not self.choices

    def value(self, place: Any) -> Any:
        """A sweep's value for a peer's."""
        if not self.is_range:
            return place
        place = min(max(round(place) if self.whole else float(place), self.low), self.high)
        match self.scale:
            case "log":
                return 10.0**place
            case "base2":
                return 2**place
            case "place":
                return self.choices[place]
        return place

    def place(self, value: Any) -> Any:
        """A peer's value for a sweep's."""
        match self.scale:
            case "log":
                return min(max(math.log10(value), self.low), self.high)
            case "base2":
                return round(math.log2(value))
            case "place":
                return self.choices.index(value)
        return value


class Space:
    """A table's space on even scales."""

    def __init__(self, table: Table) -> None:
        self.knobs = [Knob.of(name, domain) for name, domain in table.space.items()]

    def values(self, places: Mapping[str, Any]) -> dict[str, Any]:
        return {knob.name: knob.value(places[knob.name]) for knob in self.knobs}

    def places(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {knob.name: knob.place(values[knob.name]) for knob in self.knobs}

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """Values by lot."""
        drawn: dict[str, Any] = {}
        for knob in self.knobs:
            if not knob.is_range:
                drawn[knob.name] = knob.choices[int(generator.integers(len(knob.choices)))]
            elif knob.whole:
                drawn[knob.name] = int(generator.integers(int(knob.low), int(knob.high) + 1))
            else:
                drawn[knob.name] = float(generator.uniform(knob.low, knob.high))
        return self.values(drawn)


def random_search(replay: Replay) -> Work:
    """Whole schedules of settings by lot."""
    space, generator = Space(replay.table), np.random.default_rng([replay.seed, 1])

    def work() -> None:
        trial = replay.start(space.draw(generator))
        while not replay.is_done(trial):
            replay.train(trial)

    return work


def one_epoch(replay: Replay, *, kept: int, of: int) -> Work:
    """Rounds: `of` settings by lot for one epoch each, then the best `kept` for all their epochs; the others are gone.

    As published it is one round. How large a round must be nobody knows beforehand, so rounds follow each other; each
    worker has its own.
    """
    space, generator = Space(replay.table), np.random.default_rng([replay.seed, 1])

    def work() -> None:
        tried = [replay.start(space.draw(generator)) for _ in range(of)]
        for trial in tried:
            replay.train(trial)
        for trial in sorted(tried, key=lambda k: -replay.shown[k])[:kept]:
            while not replay.is_done(trial):
                replay.train(trial)

    return work


def optuna_distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        knob.name: CategoricalDistribution(knob.choices)
        if not knob.is_range
        else IntDistribution(int(knob.low), int(knob.high))
        if knob.whole
        else FloatDistribution(knob.low, knob.high)
        for knob in space.knobs
    }


def correct(study: Any, trial: Any, distributions: Mapping[str, Any], places: Mapping[str, Any]) -> None:
    """Let a trial of Optuna have been at these places."""
    for name, distribution in distributions.items():
        inner = distribution.to_internal_repr(places[name])
        study._storage.set_trial_param(trial._trial_id, name, inner, distribution)


def optuna_study(replay: Replay, *, sampler: str, pruner: str, **pruner_settings: Any) -> Work:
    """A study with its own ask, report, should_prune and tell. A complete trial is told as such, never as pruned."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if pruner == "HyperbandPruner":
        pruner_settings["max_resource"] = max(replay.table.epochs)
    space = Space(replay.table)
    distributions = optuna_distributions(space)
    study = optuna.create_study(
        study_name=f"replay {replay.seed}",  # Hyperband draws a trial's bracket by the study's name
        direction="maximize",
        sampler=getattr(optuna.samplers, sampler)(seed=replay.seed),
        pruner=getattr(optuna.pruners, pruner)(**pruner_settings),
    )

    def work() -> None:
        asked = study.ask(distributions)
        trial = replay.start(space.values(asked.params))
        correct(study, asked, distributions, space.places(replay.params(trial)))
        while not replay.is_done(trial):
            best = replay.train(trial)
            asked.report(best, replay.trained[trial])
            if not replay.is_done(trial) and asked.should_prune():
                study.tell(asked, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(asked, best)

    return work


@cache
def quicken_syne_tune() -> None:
    """Spare Syne Tune's models work that does not change a number.

    - BORE asks its classifier for 500 candidates one by one: here for all at once, when the best is asked for.
    - Quantile regression takes a quantile in each leaf of 500 trees. scikit-learn's function for it allows for weights
      and other array libraries, which takes half of the fit. Here the values are sorted.

    Replays were equal with and without it, trial by trial and epoch by epoch. A proposal takes about half of the time.
    """
    import sklearn
    from sklearn._loss import PinballLoss
    from syne_tune.optimizer.schedulers.searchers.bore import Bore

    sklearn.set_config(skip_parameter_validation=True, assume_finite=True)
    general, one_by_one = PinballLoss.fit_intercept_only, Bore._loss

    def quantile(loss: Any, y_true: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
        if sample_weight is None or y_true.ndim != 1 or not (sample_weight == 1.0).all():
            return general(loss, y_true, sample_weight)
        rank = 100 * loss.closs.quantile / 100 * float(len(y_true))
        return np.sort(y_true)[max(math.ceil(rank), 1) - 1]

    class Candidate:
        """A candidate's loss, known as soon as it is compared."""

        def __init__(self, model: Any, rows: list[np.ndarray], place: int, losses: list[float]) -> None:
            self.model, self.rows, self.place, self.losses = model, rows, place, losses

        def __lt__(self, other: "Candidate") -> bool:
            if not self.losses:
                self.losses.extend(one_by_one(self.model, np.array(self.rows)))
            return self.losses[self.place] < self.losses[other.place]

    def later(model: Any, row: np.ndarray) -> list[Candidate]:
        rows, losses = model.__dict__.setdefault("asked", ([], []))
        if losses:
            rows, losses = model.asked = ([], [])
        rows.append(row)
        return [Candidate(model, rows, len(rows) - 1, losses)]

    PinballLoss.fit_intercept_only, Bore._loss = quantile, later


def syne_tune(replay: Replay, *, scheduler: str, **settings: Any) -> Work:
    """A scheduler as Syne Tune's `Tuner` calls it."""
    import datetime

    from syne_tune import config_space
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer import baselines
    from syne_tune.optimizer.scheduler import SchedulerDecision

    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    quicken_syne_tune()
    np.random.seed(replay.seed)  # its searchers draw from numpy's common generator, too
    space = Space(replay.table)
    # Whole numbers are rounded from even ranges: its kernel densities propose integers outside of their own range.
    domains = {
        knob.name: config_space.choice(list(knob.choices))
        if not knob.is_range
        else config_space.uniform(knob.low - knob.whole / 2, knob.high + knob.whole / 2)
        for knob in space.knobs
    }
    if scheduler == "BOHB":
        settings["num_min_data_points"] = len(space.knobs) + 1
    tuner = getattr(baselines, scheduler)(
        domains,
        metric="best",
        time_attr="epoch",
        max_t=max(replay.table.epochs),
        do_minimize=False,
        random_seed=replay.seed,
        **settings,
    )

    def work() -> None:
        number = replay.start(space.values(tuner.suggest().config))
        config = space.places(replay.params(number))
        trial = Trial(number, config, datetime.datetime.fromtimestamp(0, datetime.UTC))
        tuner.on_trial_add(trial)
        while not replay.is_done(number):
            result = {"best": replay.train(number), "epoch": replay.trained[number]}
            if tuner.on_trial_result(trial, result) != SchedulerDecision.CONTINUE:
                tuner.on_trial_remove(trial)
                break
        else:
            tuner.on_trial_complete(trial, result)

    return work


def ray_tune(replay: Replay, **settings: Any) -> Work:
    """Ray Tune's ASHAScheduler and OptunaSearch, called in the order in which its controller calls them.

    No Ray is started: neither of them uses the controller, and of a trial only its id.
    """
    import optuna
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    np.random.seed(replay.seed)  # the scheduler draws brackets from numpy's common generator
    space, told = Space(replay.table), {"metric": "best", "mode": "max"}
    distributions = optuna_distributions(space)
    searcher = OptunaSearch(space=distributions, seed=replay.seed, **told)
    scheduler = ASHAScheduler(max_t=max(replay.table.epochs), **told, **settings)

    def work() -> None:
        trial = SimpleNamespace(trial_id=f"{len(replay.trained):05d}")
        number = replay.start(space.values(searcher.suggest(trial.trial_id)))
        asked = searcher._ot_trials[trial.trial_id]
        correct(searcher._ot_study, asked, distributions, space.places(replay.params(number)))
        scheduler.on_trial_add(None, trial)
        while not replay.is_done(number):
            result = {"best": replay.train(number), "training_iteration": replay.trained[number]}
            if scheduler.on_trial_result(None, trial, result) == ASHAScheduler.STOP:
                break
            searcher.on_trial_result(trial.trial_id, result)
        scheduler.on_trial_complete(None, trial, result)
        searcher.on_trial_complete(trial.trial_id, result)

    return work


@dataclass(frozen=True)
class Strategy:
    """How a replay is run: with which settings, and by whose packages."""

    search: Callable[..., Work]
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


# Defaults of the packages where nothing else is written.
# - The median pruner never judges the first epoch: our steps count from 1, so that the warm-up ends at step 2.
# - Rungs begin at one epoch. Reduction by 3 is Syne Tune's and Hyperband's default, by 4 that of Optuna's and Ray's
#   successive halving. All of them are the stopping variant: Syne Tune dropped promotion in 0.14.
# - BOHB's densities need one point more than the space has parameters, as its authors write (`num_min_data_points`);
#   Syne Tune's default asks for several times as many complete trials before the first density.
# - The Gaussian process learns nothing from pruned trials, so none is pruned.
TREES = ("syne-tune", "scikit-learn", "pandas")
STRATEGIES = {
    "random": Strategy(random_search),
    "one_epoch_top_1": Strategy(one_epoch, {"kept": 1, "of": 10}),
    "one_epoch_top_2": Strategy(one_epoch, {"kept": 2, "of": 20}),
    "optuna_tpe_median": Strategy(
        optuna_study,
        {"sampler": "TPESampler", "pruner": "MedianPruner", "n_startup_trials": 5, "n_warmup_steps": 2},
        ("optuna",),
    ),
    "optuna_tpe_hyperband": Strategy(
        optuna_study,
        {"sampler": "TPESampler", "pruner": "HyperbandPruner", "min_resource": 1, "reduction_factor": 3},
        ("optuna",),
    ),
    "optuna_tpe_asha": Strategy(
        optuna_study,
        {"sampler": "TPESampler", "pruner": "SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 4},
        ("optuna",),
    ),
    "optuna_gp": Strategy(optuna_study, {"sampler": "GPSampler", "pruner": "NopPruner"}, ("optuna", "scipy", "torch")),
    "syne_tune_asha": Strategy(
        syne_tune, {"scheduler": "ASHA", "grace_period": 1, "reduction_factor": 3}, ("syne-tune",)
    ),
    "syne_tune_ashacqr": Strategy(syne_tune, {"scheduler": "ASHACQR", "grace_period": 1, "reduction_factor": 3}, TREES),
    "syne_tune_ashabore": Strategy(
        syne_tune, {"scheduler": "ASHABORE", "grace_period": 1, "reduction_factor": 3}, ("syne-tune", "xgboost")
    ),
    "syne_tune_bohb": Strategy(
        syne_tune, {"scheduler": "BOHB", "grace_period": 1, "reduction_factor": 3}, ("syne-tune", "statsmodels")
    ),
    "ray_asha_optuna": Strategy(ray_tune, {"grace_period": 1, "reduction_factor": 4}, ("ray", "optuna")),
}


@dataclass(frozen=True)
class Job:
    table: Path
    strategy: str
    seed: int
    most_epochs: int
    near: float
    workers: int


def replay(job: Job) -> tuple[dict[str, Any], bool, float]:
    """One replay, whether it found what it looked for, and its processor seconds: the machine may be shared."""
    table, started = read(job.table), time.process_time()
    done = run(table, job.strategy, job.seed, most_epochs=job.most_epochs, near=job.near, workers=job.workers)
    seconds = time.process_time() - started
    outcome = {"seed": job.seed, "spent": done.spent, "seconds": done.seconds, "events": done.events}
    return outcome, done.has_found(), seconds


def run(table: Table, strategy: str, seed: int, *, most_epochs: int, near: float = 0.0, workers: int = 1) -> Replay:
    """Replay a strategy."""
    clock, chosen = Clock(workers), STRATEGIES[strategy]
    found = Replay(table, seed, most_epochs=most_epochs, near=near, clock=clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clock.run(chosen.search(found, **chosen.settings))
    return found


def replays(jobs: Iterable[Job], processes: int) -> list[tuple[dict[str, Any], bool, float]]:
    if processes == 1:
        return [replay(job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = list(pool.imap(replay, jobs))
        pool.close()
        pool.join()
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--strategy", nargs="+", choices=list(STRATEGIES), required=True)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--seed0", type=int, default=0, help="the first replay's seed; the others follow it")
    parser.add_argument("--most-epochs", type=int, default=1500)
    parser.add_argument("--near", type=float, default=0.0, help="a replay ends when its choice is so near to the best")
    parser.add_argument("--workers", type=int, default=1, help="that search together, each one trial at a time")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    for name in options.strategy:
        seeds = range(options.seed0, options.seed0 + options.replays)
        jobs = [Job(options.table, name, seed, options.most_epochs, options.near, options.workers) for seed in seeds]
        done = replays(jobs, options.processes)
        strategy = STRATEGIES[name]
        result = {
            "table": facts(read(options.table), Speeds.read()),
            "strategy": name,
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in ("numpy", *strategy.packages)},
            "settings": dict(strategy.settings)
            | {"most_epochs": options.most_epochs, "near": options.near, "workers": options.workers},
            "replays": [outcome for outcome, _, _ in done],
        }
        several = len(options.strategy) > 1
        path = options.json.with_stem(f"{options.json.stem}-{name}") if several else options.json
        path.write_text(json.dumps(result))
        epochs = np.median([outcome["spent"] if found else np.inf for outcome, found, _ in done])
        print(
            f"{name}: {sum(found for _, found, _ in done)} of {len(done)} within {100 * options.near:g} points of the "
            f"best, median {epochs:.0f} epochs, {np.mean([seconds for _, _, seconds in done]):.2f} s of processor time "
            "a replay",
            flush=True,
        )


if __name__ == "__main__":
    main()
