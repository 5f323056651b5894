"""Between a sweep's space and Optuna's parameters.

A `base2` range is searched as its exponent, an integer parameter named ``log2_<name>``: ordered and evenly spaced for
the sampler, and free to be widened later, which a categorical one is not.
"""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_sweep.config import PARAMETERS, TrialConfig, Value, derive_seed
from cifar_sweep.search.sweepfile import Choices, Range, Sweep

EXPONENT = "log2_"


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """Optuna's distributions for the space of `sweep`."""
    return dict(_distribution(name, domain) for name, domain in sweep.space.items())


def _distribution(name: str, domain: Range | Choices) -> tuple[str, BaseDistribution]:
    if isinstance(domain, Choices):
        return name, CategoricalDistribution(domain.choices)
    if domain.base2:
        return EXPONENT + name, IntDistribution(int(domain.low).bit_length() - 1, int(domain.high).bit_length() - 1)
    if PARAMETERS[name].kind is int:
        return name, IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=domain.step or 1)
    return name, FloatDistribution(float(domain.low), float(domain.high), log=domain.log)


def decode(params: Mapping[str, Any]) -> dict[str, Value]:
    """A trial's Optuna parameters under their own names: ``log2_batch_size = 5`` is ``batch_size = 32``."""
    return {
        name.removeprefix(EXPONENT): 2**value if name.startswith(EXPONENT) else value for name, value in params.items()
    }


def encode(point: Mapping[str, Value], sweep: Sweep) -> dict[str, Value]:
    """A point of the space as Optuna stores it, without the parameters that are not in the space."""
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
