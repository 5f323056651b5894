"""Studies by Optuna alone, for what reads and writes its tables."""

import optuna

from cifar_sweep.study.storage import Storage


def study_id(storage: Storage, name: str) -> int:
    return storage.optuna.get_study_id_from_name(name)


def begun(storage: Storage, study: optuna.Study) -> optuna.Trial:
    """A new trial that runs."""
    return optuna.Trial(study, storage.optuna.create_new_trial(study_id(storage, study.study_name)))
