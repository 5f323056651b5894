"""What a sweep is expected to train, before it is run."""

import math
import random
from collections.abc import Mapping
from functools import lru_cache

from cifar_sweep.config import PARAMETERS, Shape, TrialConfig, Value
from cifar_sweep.sweep.sweep import Choices, Range, Sweep

DRAWS = 200


def expected_shapes(sweep: Sweep, *, precision: str) -> list[tuple[float, Shape]]:
    """How many trials of each shape to expect: first points once each, others as the mean over draws from the space."""
    queued = [(1.0, shape) for shape in queued_shapes(sweep, precision=precision)]
    searched = possible_shapes(sweep, precision=precision)
    left = sweep.size - len(queued)
    return queued + ([(left / len(searched), shape) for shape in searched] if left else [])


def queued_shapes(sweep: Sweep, *, precision: str = "fp32") -> list[Shape]:
    """The shapes of the points that wait when a study of `sweep` is made; what a point leaves open is drawn."""
    if sweep.given:
        return [shape_of(sweep.fixed | point.params(), precision) for point in sweep.enqueue]
    generator = random.Random(0)  # noqa: S311 - no secret
    return [shape_of(sweep.fixed | draw(sweep.space, generator) | point, precision) for point in _first_points(sweep)]


def _first_points(sweep: Sweep) -> list[dict[str, Value]]:
    """The points that are tried first, as far as they are in the space; the study queues none twice."""
    firsts: list[dict[str, Value]] = []
    for point in sweep.enqueue:
        chosen = {name: value for name, value in point.params().items() if name in sweep.space}
        firsts += [chosen] if chosen and chosen not in firsts else []
    return firsts[: sweep.trials]


def possible_shapes(sweep: Sweep, *, precision: str = "fp32") -> list[Shape]:
    """Shapes that the sampler may choose, drawn at random; none where all points are given."""
    if sweep.given:
        return []
    generator = random.Random(0)  # noqa: S311 - no secret
    # All that a trial's time is estimated from.
    decisive = ("model", "batch_norm", "batch_size", "epochs", "train_images")
    space = {name: domain for name, domain in sweep.space.items() if name in decisive}
    return [shape_of(sweep.fixed | draw(space, generator), precision) for _ in range(DRAWS if space else 1)]


def shape_of(params: Mapping[str, Value], precision: str = "fp32") -> Shape:
    """The shape of a trial with these parameters, all others being their defaults."""
    return _shape_of(tuple(params.items()), precision)


@lru_cache(maxsize=1000)
def _shape_of(params: tuple[tuple[str, Value], ...], precision: str) -> Shape:
    return TrialConfig.from_params(dict(params), classes=10, precision=precision, data_seed=0, seed=0).shape


def draw(space: Mapping[str, Range | Choices], generator: random.Random) -> dict[str, Value]:
    """A random point of `space`, as the random sampler would take it."""
    return {name: _draw(domain, PARAMETERS[name].kind, generator) for name, domain in space.items()}


def _draw(domain: Range | Choices, kind: type, generator: random.Random) -> Value:
    if isinstance(domain, Choices):
        return generator.choice(domain.choices)
    low, high = domain.low, domain.high
    if domain.base2:
        return int(2 ** generator.randint(int(math.log2(low)), int(math.log2(high))))
    if domain.log:  # as Optuna does it: a whole number is drawn by the logarithmic width of its surroundings
        margin = 0.5 if kind is int else 0.0
        value = math.exp(generator.uniform(math.log(low - margin), math.log(high + margin)))
        value = min(max(value, low), high)
        return round(value) if kind is int else value
    if kind is not int:
        return generator.uniform(low, high)
    step = domain.step or 1
    return int(low) + step * generator.randint(0, int(high - low) // step)
