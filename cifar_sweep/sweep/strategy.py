"""Samplers and pruners by name, and what a step is."""

import math
import warnings
from collections.abc import Mapping

from optuna import Study, pruners
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler

from cifar_sweep.config import decides_shape, derive_seed
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import PARAMETERS
from cifar_sweep.sweep.sweep import Sweep, values_of

# Where epochs are searched, a report's step is a tenth of the trial's own schedule: short and long schedules are then
# compared at the same place of their decay.
STEPS_OF_A_SCHEDULE = 10


class _Sequence(QMCSampler):
    """A quasi-random sequence over the whole space: Optuna takes the first trial's parameters for all there are."""

    def __init__(self, whole: Mapping[str, BaseDistribution], *, seed: int, independent: BaseSampler) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(scramble=True, seed=seed, independent_sampler=independent)
        self._whole = dict(whole)

    def infer_relative_search_space(self, _study: Study, _trial: object) -> dict[str, BaseDistribution]:
        return {name: each for name, each in self._whole.items() if not each.single()}


def build_sampler(sweep: Sweep, *, number: int, whole: Mapping[str, BaseDistribution] | None = None) -> BaseSampler:
    """The sampler for trial `number` alone: with one seed for all it would repeat itself after a restart.

    `whole` has all parameters of the space, for a sampler that looks at them together.
    """
    seed = derive_seed(sweep.seed, "sampler", number)
    if sweep.sampler.name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=sweep.sampler.startup_trials)
    if sweep.sampler.name == "qmc":
        # One sequence for all trials and workers; Optuna notes with the study how far it is.
        sequence = derive_seed(sweep.seed, "sampler")
        return _Sequence(whole or {}, seed=sequence, independent=RandomSampler(seed=seed))
    return RandomSampler(seed=seed)  # in a given point nothing is left to sample; nor in one that a model chose


def build_pruner(sweep: Sweep) -> pruners.BasePruner:
    """The pruner of `sweep`, with whole numbers throughout: an automatic budget differs from worker to worker.

    Raises UsageError where the pruner compares resources, and the sweep searches the number of epochs.
    """
    settings, least = sweep.pruner, sweep.pruner.min_steps
    if settings.name in ("asha", "hyperband") and "epochs" in sweep.space:
        raise UsageError(
            f"pruner {settings.name!r} compares trials by epochs spent and is unfair to long schedules while [space] "
            "holds epochs; accepted there: median, percentile, none."
        )
    # Optuna counts steps from 0 and may prune at step n_warmup_steps; ours begin at 1.
    common = {"n_startup_trials": settings.startup_trials, "n_warmup_steps": settings.warmup_steps + 1}
    match settings.name:
        case "none" | "auto":  # auto: it is not Optuna that prunes
            return pruners.NopPruner()
        case "median":
            return pruners.MedianPruner(**common)
        case "percentile":
            return pruners.PercentilePruner(settings.percentile, **common)
        case "asha":
            return pruners.SuccessiveHalvingPruner(least, reduction_factor=settings.reduction_factor)
        case "hyperband":
            most = max(least, steps_in_all(sweep))
            return pruners.HyperbandPruner(least, max_resource=most, reduction_factor=settings.reduction_factor)


# Trials of one shape that may always be under way, of all workers together: measured in docs/group_search.md.
UNDER_WAY = 16


def searches_shape(sweep: Sweep) -> bool:
    """Whether trials of the sweep may differ in their shape."""
    return any(decides_shape(name, *values_of(sweep, name)) for name in sweep.space)


def most_new(sweep: Sweep, *, asked: int, finished: int, workers: int, devices: int = 1) -> int:
    """How many new trials a worker may ask for at once, each without the others' results.

    So no more are under way than have finished, or than `UNDER_WAY`, which costs the search next to nothing; but where
    nothing is learnt from results: the first trials of TPE are random, and so are all of the random sampler's. Where
    the shape is searched, all of a group have one shape, which costs more: no more are under way than half of what has
    finished, from the first trial on. What these rules cost and save is measured in docs/group_search.md. Of the trials
    `asked` for so far, those that wait are not counted; `finished` have a result.

    Of several `devices` each has so many under way: a group of half as many takes a GPU as long, so that with smaller
    ones nothing would be gained from more GPUs.
    """
    left = max(1, math.ceil((sweep.size - finished) / workers))  # the last ones are for all workers
    workers = math.ceil(workers / devices)
    if searches_shape(sweep):
        return min(left, _power_of_two(finished / (2 * workers)))
    if sweep.sampler.name in ("random", "qmc"):
        return left
    share = _power_of_two(sweep.sampler.startup_trials / workers, up=True)  # more random trials, and a faster group
    at_random = share if asked < sweep.sampler.startup_trials else 1
    return min(left, max(at_random, _power_of_two(max(finished, UNDER_WAY) / workers)))


def _power_of_two(size: float, *, up: bool = False) -> int:
    """The nearest power of two, or the next: groups of these sizes are the fastest (docs/LOG.md, 2026-11-22)."""
    exponent = math.log2(max(1.0, size))
    return int(2 ** (math.ceil(exponent) if up else round(exponent)))


def steps_in_all(sweep: Sweep) -> int:
    """The last step that a trial of `sweep` can report."""
    if "epochs" in sweep.space:
        return STEPS_OF_A_SCHEDULE
    return int(sweep.fixed.get("epochs", PARAMETERS["epochs"].default))


def step_of(epoch: int, *, epochs: int, searched: bool) -> int | None:
    """The step to report after `epoch` of `epochs`, or None where the epoch ends no step.

    The step is the epoch; where epochs are searched, the number of whole tenths of the schedule done.
    """
    if not searched:
        return epoch
    step = STEPS_OF_A_SCHEDULE * epoch // epochs
    before = STEPS_OF_A_SCHEDULE * (epoch - 1) // epochs
    return step if step > before else None
