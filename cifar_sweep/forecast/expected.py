"""What a sweep is expected to train, before it is run."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

import optuna

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.parameters import NETWORK, OWN, Value, base_of
from cifar_sweep.search.cube import Cube
from cifar_sweep.sweep import space
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.strategy import build_sampler
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.training_parameters import CHANGES

DRAWS = 200
_DECISIVE = frozenset((
    "model", "batch_norm", "activation", "input_size", "batch_size", "epochs", "train_images", *CHANGES, *NETWORK
))  # fmt: skip


def is_decisive(name: str) -> bool:
    """Whether a trial's time is estimated from this parameter."""
    return base_of(name) in _DECISIVE or name.startswith(OWN)


def expected_shapes(sweep: Sweep, *, precision: str) -> list[tuple[float, Shape]]:
    """How many trials of each shape to expect: first points once each, others as the mean over draws from the space."""
    queued = [(1.0, shape) for shape in queued_shapes(sweep, precision=precision)]
    searched = possible_shapes(sweep, precision=precision)
    left = sweep.size - len(queued)
    queued = [each for each in queued if not each[1].fault] or queued[:1]  # such trials are pruned untrained
    searched = [shape for shape in searched if not shape.fault] or searched[:1]
    return queued + ([(left / len(searched), shape) for shape in searched] if left else [])


def queued_shapes(sweep: Sweep, *, precision: str = "fp32") -> list[Shape]:
    """The shapes of the points that wait when a study of `sweep` is made; what a point leaves open is drawn."""
    if sweep.listed:
        points = [point.params() for point in sweep.enqueue] if sweep.given else grid(sweep)[: sweep.trials]
        firsts = {space.shape_key(point): point for point in points}
        shapes = {key: shape_of({**sweep.fixed, **point}, precision) for key, point in firsts.items()}
        return [shapes[space.shape_key(point)] for point in points]
    generator = random.Random(0)  # noqa: S311 - no secret
    return [shape_of(sweep.fixed | draw(sweep, generator) | point, precision) for point in _first_points(sweep)]


def _first_points(sweep: Sweep) -> list[dict[str, Value]]:
    """The points that are tried first, as far as they are in the space; the study queues none twice."""
    firsts: list[dict[str, Value]] = []
    for point in sweep.enqueue:
        chosen = {name: value for name, value in point.params().items() if name in sweep.space}
        firsts += [chosen] if chosen and chosen not in firsts else []
    return firsts[: sweep.trials]


def possible_shapes(sweep: Sweep, *, precision: str = "fp32") -> list[Shape]:
    """Shapes that the sampler may choose, drawn at random; none where all points are listed."""
    if sweep.listed:
        return []
    generator = random.Random(0)  # noqa: S311 - no secret
    decisive = list(filter(is_decisive, sweep.space))
    draws = DRAWS if decisive else 1
    cube = Cube(sweep)
    points = (cube.some([generator.random() for _ in cube.names], decisive) for _ in range(draws))
    return [shape_of(sweep.fixed | point, precision) for point in points]


def learns(sweep: Sweep, finished: int) -> bool:
    """Whether TPE chooses by results when so many trials are finished."""
    return sweep.sampler.name == "tpe" and finished >= sweep.sampler.startup_trials


def drawn_shapes(sweep: Sweep, begun: int, finished: int = 0) -> dict[int, Shape]:
    """The shapes of new trials by their numbers, as far as seeds alone decide them, which they do before TPE learns.

    Claiming asks for the first trial of a group so, whose shape the others share. Empty where no shape is drawn so.
    `begun` trials are there already, of which so many are `finished`.
    """
    drawn = sweep.sampler.name in ("random", "tpe") and not learns(sweep, finished)
    if not drawn or not any(map(is_decisive, sweep.space)):
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would log this study of nobody's
    study, shapes = optuna.create_study(), {}
    for number in range(begun, begun + min(sweep.size - finished, DRAWS)):
        study.sampler = build_sampler(sweep, number=number)
        space.suggest(trial := study.ask(), sweep)
        shapes[number] = space.to_config(trial.params, sweep, number=number, classes=10, precision="fp32").shape
    return shapes


def shape_of(params: Mapping[str, Value], precision: str = "fp32") -> Shape:
    """The shape of a trial with these parameters, all others being their defaults."""
    return _shape_of(tuple(params.items()), precision)


@lru_cache(maxsize=1000)
def _shape_of(params: tuple[tuple[str, Value], ...], precision: str) -> Shape:
    return TrialConfig.from_params(dict(params), classes=10, precision=precision, data_seed=0, seed=0).shape


def draw(sweep: Sweep, generator: random.Random, names: Sequence[str] | None = None) -> dict[str, Value]:
    """A random point of the space: its parameters of these names."""
    cube = Cube(sweep)
    return cube.some([generator.random() for _ in cube.names], cube.names if names is None else names)
