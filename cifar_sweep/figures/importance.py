"""Which parameters decide whether a trial is among the best."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from cifar_sweep.study.record import TrialRecord
from cifar_sweep.sweep import space

# PED-ANOVA compares the best tenth, and no fewer than two trials, with all.
FEWEST_TRIALS = 10


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial is among the best tenth; empty, with a reason, where unknown."""

    shares: tuple[tuple[str, float], ...]
    trials: int
    reason: str = ""


def importances_of(trials: Sequence[TrialRecord]) -> Importances:
    """Optuna's PED-ANOVA importances over the complete trials, by the parameters' own names, the greatest first.

    They answer one question: which parameters set the best tenth of the complete trials apart from all of them.
    """
    complete = [trial.frozen for trial in trials if trial.state == "complete"]
    reason = ""
    if len(complete) < FEWEST_TRIALS:
        there = "is 1 complete trial" if len(complete) == 1 else f"are {len(complete)} complete trials"
        reason = f"there {there}, and it takes {FEWEST_TRIALS}"
    elif len({name for trial in complete for name in trial.params}) < 2:
        reason = "it compares parameters, and fewer than two were searched"
    elif len({trial.value for trial in complete}) == 1:
        reason = "all complete trials have the same accuracy"
    if reason:
        return Importances((), len(complete), reason)
    # In memory, without their curves: the study's own storage would be read again.
    study = optuna.create_study(direction="maximize")
    for trial in complete:
        study.add_trial(optuna.create_trial(value=trial.value, params=trial.params, distributions=trial.distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on parameters that few trials have
        found = optuna.importance.get_param_importances(study)
    shares = [(name.removeprefix(space.EXPONENT), share) for name, share in found.items()]
    return Importances(tuple(sorted(shares, key=lambda entry: -entry[1])), len(complete))
