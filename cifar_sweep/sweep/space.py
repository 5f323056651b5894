"""Between a sweep's space and Optuna's parameters."""

from collections.abc import Collection, Mapping
from typing import Any

import optuna

from cifar_sweep.config import PARAMETERS, TrialConfig, Value, applies, derive_seed
from cifar_sweep.sweep.strategy import SHAPE_PARAMETERS
from cifar_sweep.sweep.sweep import Choices, Range, Sweep

# A base2 range is searched as its exponent, log2_<name>: ordered and evenly spaced for the sampler, and free to be
# widened later, which a categorical one is not.
EXPONENT = "log2_"
LARGEST_EXPONENT = 64


# What decides whether others apply is suggested first.
_DECIDING = ("model", "optimizer", "batch_norm")


def suggest(trial: optuna.Trial, sweep: Sweep, *, named: Collection[str] | None = None) -> None:
    """Give `trial` a value for each parameter of the space that does something beside those it has got already.

    A VGG's hidden units are so never sampled for a network without them, and Optuna's importances and plots know the
    values of those trials alone that used one. `named` limits it to these parameters: those of a given point.
    """
    taken: dict[str, Value] = dict(sweep.fixed)
    for name in sorted(sweep.space, key=lambda name: name not in _DECIDING):
        if applies(name, taken) and (named is None or name in named):
            taken[name] = _suggest(trial, name, sweep.space[name])


def _suggest(trial: optuna.Trial, name: str, domain: Range | Choices) -> Any:
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, domain.choices)
    low, high, log = domain.low, domain.high, domain.log
    if domain.base2:
        return int(2 ** trial.suggest_int(EXPONENT + name, int(low).bit_length() - 1, int(high).bit_length() - 1))
    if PARAMETERS[name].kind is int:
        return trial.suggest_int(name, int(low), int(high), log=log, step=domain.step or 1)
    return trial.suggest_float(name, float(low), float(high), log=log)


def decode(params: Mapping[str, Any]) -> dict[str, Value]:
    """A trial's Optuna parameters under their own names: ``log2_batch_size = 5`` is ``batch_size = 32``.

    What is no exponent of a parameter stays as somebody else wrote it.
    """
    known: dict[str, Value] = {}
    for name, value in params.items():
        base = name.removeprefix(EXPONENT)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_exponent = base != name and is_number and 0 <= value <= LARGEST_EXPONENT and value % 1 == 0
        known |= {base: 2 ** int(value)} if is_exponent and base not in params else {name: value}
    return known


def shape_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a trial's Optuna parameters that decide its shape."""
    return {name: value for name, value in params.items() if name.removeprefix(EXPONENT) in SHAPE_PARAMETERS}


def leaves_shape_open(params: Mapping[str, Any], sweep: Sweep) -> bool:
    """Whether a trial that is begun with these Optuna parameters has still to be given one that decides its shape."""
    known = sweep.fixed | decode(params)
    return any(name in SHAPE_PARAMETERS and name not in known and applies(name, known) for name in sweep.space)


def encode(point: Mapping[str, Value], sweep: Sweep) -> dict[str, Value]:
    """A point of the space as Optuna stores it, without what is not in the space or does nothing beside the rest."""
    used = {name: value for name, value in point.items() if applies(name, sweep.fixed | dict(point))}
    return renamed(used, sweep)


def renamed(point: Mapping[str, Value], sweep: Sweep) -> dict[str, Value]:
    """A point of the space as Optuna stores it, without what is not in the space."""
    encoded: dict[str, Value] = {}
    for name, value in point.items():
        domain = sweep.space.get(name)
        if isinstance(domain, Range) and domain.base2:
            encoded[EXPONENT + name] = int(value).bit_length() - 1
        elif domain is not None:
            encoded[name] = value
    return encoded


def to_config(params: Mapping[str, Any], sweep: Sweep, *, number: int, classes: int, precision: str) -> TrialConfig:
    """The complete config of trial `number` with these Optuna parameters.

    Given points all start from one seed: two that differ in one setting then differ by it alone, and a point's result
    does not depend on which others were run before it.
    """
    return TrialConfig.from_params(
        sweep.fixed | decode(params),
        classes=classes,
        precision=precision,
        data_seed=derive_seed(sweep.seed, "data"),
        seed=derive_seed(sweep.seed, "trial", 0 if sweep.given else number),
    )
