"""What a sweep is expected to train, before it is run."""

import math
import random
from collections.abc import Mapping, Sequence

from cifar_sweep.config import PARAMETERS, Shape, TrialConfig, Value
from cifar_sweep.sweep.sweep import Choices, Range, Sweep

DRAWS = 200
# All that a trial's time is estimated from.
_DECISIVE = ("model", "batch_norm", "batch_size", "epochs", "train_images")


def expected_shapes(sweep: Sweep, *, precision: str) -> list[tuple[float, Shape]]:
    """How many trials of each shape to expect; the counts add up to the sweep's number of trials.

    Given points are themselves; otherwise each point tried first is, and the other trials are the mean over random
    draws from the space. What does not decide a trial's time has its default.
    """
    if sweep.given:
        return [(1.0, shape_of(sweep.fixed | point.params(), precision)) for point in sweep.enqueue]
    firsts = first_points(sweep)
    draws = drawn(sweep)
    expected: list[tuple[float, Shape]] = []
    for first in firsts:
        few = completed(sweep, first, draws)
        expected += [(1 / len(few), shape_of(values, precision)) for values in few]
    left = sweep.trials - len(firsts)
    return expected + ([(left / len(draws), shape_of(values, precision)) for values in draws] if left else [])


def first_points(sweep: Sweep) -> list[dict[str, Value]]:
    """The points that are tried first, as far as they are in the space; the study queues none twice."""
    firsts: list[dict[str, Value]] = []
    for point in sweep.enqueue:
        chosen = {name: value for name, value in point.params().items() if name in sweep.space}
        if chosen and chosen not in firsts:
            firsts.append(chosen)
    return firsts[: sweep.trials]


def drawn(sweep: Sweep) -> list[dict[str, Value]]:
    """Random draws from the space, with what is fixed: all that a trial's time is estimated from."""
    generator = random.Random(0)  # noqa: S311 - no secret
    space = {name: domain for name, domain in sweep.space.items() if name in _DECISIVE}
    return [sweep.fixed | draw(space, generator) for _ in range(DRAWS if space else 1)]


def completed(sweep: Sweep, first: Mapping[str, Value], draws: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """What may become of a point that is tried first: what it leaves open of all that decides a time is drawn."""
    is_open = any(name in _DECISIVE and name not in first for name in sweep.space)
    return [{**values, **first} for values in (draws if is_open else draws[:1])]


def shape_of(params: Mapping[str, Value], precision: str) -> Shape:
    """The shape of a trial with these parameters, all others being their defaults."""
    return TrialConfig.from_params(params, classes=10, precision=precision, data_seed=0, seed=0).shape


def draw(space: Mapping[str, Range | Choices], generator: random.Random) -> dict[str, Value]:
    """A random point of `space`, as the random sampler would take it."""
    return {name: _draw(domain, PARAMETERS[name].kind, generator) for name, domain in space.items()}


def _draw(domain: Range | Choices, kind: type, generator: random.Random) -> Value:
    if isinstance(domain, Choices):
        return generator.choice(domain.choices)
    low, high = domain.low, domain.high
    if domain.base2:
        return int(2 ** generator.randint(int(math.log2(low)), int(math.log2(high))))
    if kind is not int:
        if domain.log:
            return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
        return generator.uniform(low, high)
    if domain.log:  # as Optuna does it: each whole number by the logarithmic width of its surroundings
        value = math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return min(max(round(value), int(low)), int(high))
    step = domain.step or 1
    return int(low) + step * generator.randint(0, int(high - low) // step)
