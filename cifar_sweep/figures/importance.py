"""Which parameters decide whether a trial is among the best."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.sweep import space

# PED-ANOVA compares the best tenth, and no fewer than two trials, with all.
FEWEST_FOR_IMPORTANCE = 10


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial is among the best tenth; empty, with a reason, where unknown."""

    shares: tuple[tuple[str, float], ...]
    trials: int
    reason: str = ""


def importances_of(trials: Sequence[FrozenTrial]) -> Importances:
    """Optuna's PED-ANOVA importances over the complete trials, by the parameters' own names, the greatest first.

    They answer one question: which parameters set the best tenth of the complete trials apart from all of them.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    names = {name for trial in complete for name in trial.params}
    if len(complete) < FEWEST_FOR_IMPORTANCE:
        there = f"there {'is 1 complete trial' if len(complete) == 1 else f'are {len(complete)} complete trials'}"
        return Importances((), len(complete), f"{there}, and it takes {FEWEST_FOR_IMPORTANCE}")
    if len(names) < 2:
        return Importances((), len(complete), "it compares parameters, and fewer than two were searched")
    if len({trial.value for trial in complete}) == 1:
        return Importances((), len(complete), "all complete trials have the same accuracy")
    # In memory, without their curves: the study's own storage would be read again.
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.create_trial(value=trial.value, params=trial.params, distributions=trial.distributions)
            for trial in complete
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on parameters that few trials have
        found = optuna.importance.get_param_importances(study)
    shares = [(name.removeprefix(space.EXPONENT), share) for name, share in found.items()]
    return Importances(tuple(sorted(shares, key=lambda entry: -entry[1])), len(complete))
