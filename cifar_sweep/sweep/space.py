"""Between a sweep's space and Optuna's parameters."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from cifar_sweep.config import TrialConfig, decides_shape, derive_seed
from cifar_sweep.parameters import Value, applies
from cifar_sweep.sweep.sweep import (
    DECIDING,
    Choices,
    ChoicesCase,
    Range,
    RangeCase,
    Sweep,
    contains,
    domain_beside,
    is_whole,
    parts_of,
    suggested_order,
    values_of,
)

# A base2 range is searched as its exponent, log2_<name>: ordered and evenly spaced for the sampler, and free to be
# widened later, which a categorical one is not.
EXPONENT = "log2_"
LARGEST_EXPONENT = 64


LENGTH = {"epochs"}  # a trial of another length is an observation all the same: its curve says at which epoch


def suggest(trial: BaseTrial, sweep: Sweep, *, named: Collection[str] | None = None) -> None:
    """Give `trial` a value for each parameter of the space that does something beside those it has got already.

    A VGG's hidden units are so never sampled for a network without them, and Optuna's importances and plots know the
    values of those trials alone that used one. `named` limits it to these parameters: those of a given point.
    """
    taken: dict[str, Value] = dict(sweep.fixed)
    for name in suggested_order(sweep):
        if applies(name, taken) and (named is None or name in named):
            taken[name] = _suggest(trial, name, domain_beside(sweep.space[name], taken))


def _suggest(trial: BaseTrial, name: str, domain: Range | Choices) -> Any:
    key, distribution = _distribution(name, domain)
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(key, distribution.choices)
        case IntDistribution(low=low, high=high, log=log, step=step):
            value = trial.suggest_int(key, low, high, log=log, step=step)
            return 2**value if key.startswith(EXPONENT) else value
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(key, low, high, log=log)


def _distribution(name: str, domain: Range | Choices) -> tuple[str, BaseDistribution]:
    """A parameter's name and distribution as Optuna has them."""
    key = _key(name, domain)
    if isinstance(domain, Choices):
        return key, CategoricalDistribution(domain.choices)
    low, high, log = domain.low, domain.high, domain.log
    if domain.base2:
        return key, IntDistribution(int(low).bit_length() - 1, int(high).bit_length() - 1)
    if is_whole(name, domain):
        return key, IntDistribution(int(low), int(high), log=log, step=domain.step or 1)
    return key, FloatDistribution(float(low), float(high), log=log)


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each parameter of the space, by the name that it has there."""
    return dict(_distribution(name, each) for name, domain in sweep.space.items() for each in parts_of(domain))


def _key(name: str, domain: Range | Choices) -> str:
    """A parameter's name as Optuna has it: of one that has cases each has its own, with its condition in brackets."""
    case = f"[{domain.condition}]" if isinstance(domain, (RangeCase, ChoicesCase)) else ""
    return EXPONENT * (isinstance(domain, Range) and domain.base2) + name + case


def own_name(key: str) -> str:
    """A parameter's own name by the one that it has in Optuna."""
    name, bracket, _ = key.removeprefix(EXPONENT).partition("[")
    return name if bracket and key.endswith("]") else key.removeprefix(EXPONENT)


def decode(params: Mapping[str, Any]) -> dict[str, Value]:
    """A trial's Optuna parameters under their own names: ``log2_batch_size = 5`` is ``batch_size = 32``.

    What is no exponent of a parameter stays as somebody else wrote it.
    """
    known: dict[str, Value] = {}
    for name, value in params.items():
        base = own_name(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_exponent = name.startswith(EXPONENT) and is_number and 0 <= value <= LARGEST_EXPONENT and value % 1 == 0
        plain = name if name.startswith(EXPONENT) else base
        known |= {base: 2 ** int(value)} if is_exponent and base not in params else {plain: value}
    return known


def shape_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a trial's Optuna parameters that decide its shape."""
    return {name: value for name, value in params.items() if decides_shape(own_name(name), value)}


def shape_key(params: Mapping[str, Any]) -> Hashable:
    """Equal for Optuna parameters of one shape: all that decides it, or whether what decides it applies."""
    deciding = DECIDING | {"model"}
    return frozenset(
        (name, value)
        for name, value in params.items()
        if decides_shape(own_name(name), value) or own_name(name) in deciding
    )


def leaves_shape_open(params: Mapping[str, Any], sweep: Sweep) -> bool:
    """Whether a trial that is begun with these Optuna parameters has still to be given one that decides its shape."""
    known = sweep.fixed | decode(params)
    open_ones = (name for name in sweep.space if name not in known and applies(name, known))
    return any(decides_shape(name, *values_of(sweep, name)) for name in open_ones)


def encode(point: Mapping[str, Value], sweep: Sweep) -> dict[str, Value]:
    """A point of the space as Optuna stores it, without what is not in the space or does nothing beside the rest."""
    used = {name: value for name, value in point.items() if applies(name, sweep.fixed | dict(point))}
    return renamed(used, sweep)


def renamed(point: Mapping[str, Value], sweep: Sweep) -> dict[str, Value]:
    """A point of the space as Optuna stores it, without what is not in the space."""
    encoded: dict[str, Value] = {}
    for name, value in point.items():
        if name in sweep.space:
            domain = domain_beside(sweep.space[name], sweep.fixed | dict(point))
            is_exponent = isinstance(domain, Range) and domain.base2
            encoded[_key(name, domain)] = int(value).bit_length() - 1 if is_exponent else value
    return encoded


def point_at(config: TrialConfig, sweep: Sweep) -> tuple[dict[str, Value], dict[str, Value]]:
    """The point of a sweep's space at a trial's settings, and those settings that no trial of the sweep would have.

    They are fixed otherwise, or outside of the space. Seeds do not count.
    """
    settings, shape = config.complete(), config.shape
    searched = {name: settings[name] for name in sweep.space if name in settings and applies(name, settings)}
    inside = {name: contains(domain_beside(sweep.space[name], settings), value) for name, value in searched.items()}
    point = {name: value for name, value in searched.items() if inside[name]}
    seeds = {"data_seed": shape.data_seed, "seed": config.knobs.seed}
    there = TrialConfig.from_params(sweep.fixed | point, classes=shape.classes, precision=shape.precision, **seeds)
    same = there.complete()
    different = {
        name: settings.get(name, "not set") for name in settings | same if settings.get(name) != same.get(name)
    }
    return point, different | {name: value for name, value in searched.items() if name not in point}


def to_config(params: Mapping[str, Any], sweep: Sweep, *, number: int, classes: int, precision: str) -> TrialConfig:
    """The complete config of trial `number` with these Optuna parameters.

    Given points all start from one seed: two that differ in one setting then differ by it alone, and a point's result
    does not depend on which others were run before it. So do trials of one `repeat`.
    """
    values = sweep.fixed | decode(params)
    repeat = values.get("repeat", 0)
    own = ("repeat", int(repeat)) if repeat else ("trial", 0 if sweep.given else number)
    return TrialConfig.from_params(
        values,
        classes=classes,
        precision=precision,
        data_seed=derive_seed(sweep.seed, "data"),
        seed=derive_seed(sweep.seed, *own),
    )
