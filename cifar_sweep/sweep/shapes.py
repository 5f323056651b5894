"""Which shapes of networks the points of a sweep have: that there are some, for its images."""

from collections.abc import Iterator, Mapping
from itertools import islice, product

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.layers import SHRINKS
from cifar_sweep.parameters import BY_LAYER, MOST_LAYERS, PARAMETERS, Value, base_of
from cifar_sweep.sweep.sweep import Cases, Choices, Range, Sweep, listed, parts_of, values_of

MOST_TRIED = 2000  # points, of a space that may leave nothing of its images


def check_layers(sweep: Sweep) -> None:
    """Refuse lists that could not stand beside each other, and a space of which every point leaves no image."""
    for counted in set(BY_LAYER.values()):
        lengths = {
            name: {len(PARAMETERS[name].entries(value)) for value in values_of(sweep, name)} - {0}
            for name, counter in BY_LAYER.items()
            if counter == counted
        }
        if counted in sweep.space:
            lengths[counted] = {int(value) for value in _each(sweep.space[counted])}
        elif counted in sweep.fixed:
            lengths[counted] = {int(sweep.fixed[counted])}
        listed_ones = {name: each for name, each in lengths.items() if each}
        if len(listed_ones) > 1 and len(set[int]().union(*listed_ones.values())) > 1:
            words = "; ".join(f"{name} {listed(sorted(each))}" for name, each in listed_ones.items())
            raise UsageError(f"lists of layers are of different lengths, {words}; accepted: all of one length.")
    shapes = (_shape_at(sweep.fixed | point) for point in islice(_shrinking(sweep), MOST_TRIED + 1))
    faults: list[str] = []
    for shape in shapes:
        if not shape.fault or len(faults) == MOST_TRIED:  # too many to say that all are so
            return
        faults.append(shape.fault)
    if faults:
        raise UsageError(f"{faults[0]}.")


def _shape_at(point: Mapping[str, Value]) -> Shape:
    return TrialConfig.from_params(point, classes=10, precision="fp32", data_seed=0, seed=0).shape


def _shrinking(sweep: Sweep) -> Iterator[dict[str, Value]]:
    """The points of a sweep, as far as they decide what is left of an image."""
    if sweep.given:
        yield from (point.params() for point in sweep.enqueue)
        return
    kinds = ("model", *SHRINKS, *BY_LAYER)
    names = [name for name in sweep.space if base_of(name) in kinds and name not in ("dropout", "conv_dropout")]
    every = [_each(sweep.space[name]) for name in names]
    yield from (dict(zip(names, values, strict=True)) for values in product(*every))


def _each(domain: Range | Choices | Cases) -> list[Value]:
    """What a parameter can be; of many numbers the ends."""
    if isinstance(domain, Range) and domain.high - domain.low < MOST_LAYERS:
        return list(range(int(domain.low), int(domain.high) + 1))
    ends = (part.choices if isinstance(part, Choices) else [part.low, part.high] for part in parts_of(domain))
    return [value for values in ends for value in values]
