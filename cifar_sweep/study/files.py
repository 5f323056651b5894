"""Where a study's files are kept, and which of them are no longer needed."""

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.study.study import SweepStudy


def study_folder(study: SweepStudy) -> str:
    """Where a study's files are, in its store. The uid keeps studies of one name in two databases apart."""
    return f"{study.name}-{study.uid}"


def trial_folder(study: SweepStudy, number: int) -> str:
    """Where a trial's files are."""
    return f"{study_folder(study)}/trial-{number:04d}"


def drop_needless(study: SweepStudy, artifacts: Artifacts) -> None:
    """Remove what finished trials have left, but for the weights that are kept."""
    trials = study.trials()
    finished = {trial_folder(study, trial.number) for trial in trials if trial.is_finished}
    kept = {trial.weights.name for trial in study.kept(trials) if trial.weights}
    for name in artifacts.names(study_folder(study)):
        if name.rpartition("/")[0] in finished and name not in kept:
            artifacts.remove(name)


def remove_files(study: SweepStudy, artifacts: Artifacts) -> None:
    """Remove every file of a study."""
    for name in artifacts.names(study_folder(study)):
        artifacts.remove(name)
