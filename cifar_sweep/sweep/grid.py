"""A space as a grid: each of its points once, in an order of its own."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import PARAMETERS, Value, applies
from cifar_sweep.sweep.sweep import Cases, Choices, Range, Sweep, domain_beside, is_whole, listed, suggested_order

MOST_POINTS = 10_000
_SHOWN = 5  # values that stand for a range


def grid(sweep: Sweep) -> Sequence[Mapping[str, Value]]:
    """The points of the space in the order in which they are trained, each without what does nothing beside the rest.

    Raises UsageError where a parameter has no end of values, or there are more than `MOST_POINTS` points.
    """
    return _grid(sweep.model_dump_json(include={"name", "seed", "fixed", "space"}))


@lru_cache(maxsize=4)
def _grid(text: str) -> Sequence[Mapping[str, Value]]:
    """The same of a sweep as JSON. A search in so many hours asks for one grid again and again."""
    sweep = Sweep.model_validate_json(text)
    points: list[dict[str, Value]] = [{}]
    for name in suggested_order(sweep):
        domain = sweep.space[name]
        more = (point | each for point in points for each in _further(name, domain, sweep.fixed | point))
        points = list(islice(more, MOST_POINTS + 1))
        if len(points) > MOST_POINTS:
            fault = f"sampler 'grid': the space has more than {MOST_POINTS:,} points"
            raise UsageError(f"{fault}; accepted: fewer values, or sampler = 'random' with as many trials as you like.")
    random.Random(derive_seed(sweep.seed, "grid")).shuffle(points)  # noqa: S311 - no secret
    return points


def _further(name: str, domain: Range | Choices | Cases, settings: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
    """What a parameter adds to a point with these settings."""
    if not applies(name, settings):
        yield {}
        return
    yield from ({name: value} for value in _values(name, domain_beside(domain, settings)))


def _values(name: str, domain: Range | Choices) -> Sequence[Value]:
    """All values of a domain."""
    if isinstance(domain, Choices):
        return domain.choices
    low, high = domain.low, domain.high
    if domain.base2:
        return [1 << k for k in range(int(low).bit_length() - 1, int(high).bit_length())]
    if is_whole(name, domain) and not domain.log:
        return range(int(low), int(high) + 1, domain.step or 1)
    shares = [k / (_SHOWN - 1) for k in range(_SHOWN)]
    some = [low * (high / low) ** share if domain.log else low + share * (high - low) for share in shares]
    words = listed(dict.fromkeys(f"{value:.3g}" if PARAMETERS[name].kind is float else round(value) for value in some))
    raise UsageError(
        f"[space]: {name}: a grid tries each value, and {domain} is a {'log range' if domain.log else 'range'} without "
        f"steps; accepted: a list, such as choices = [{words}]."
    )
