"""Studies by Optuna alone, for what reads and writes its tables."""

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.storages import RDBStorage

from cifar_sweep.study.storage import Storage


@contextmanager
def opened_by_optuna(url: str, name: str) -> Iterator[optuna.Study]:
    """A study as another program opens it. Optuna leaves its connections to the garbage collector; here they end."""
    behind = RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield optuna.load_study(storage=behind, study_name=name)
    finally:
        behind.remove_session()
        behind.engine.dispose()


def study_id(storage: Storage, name: str) -> int:
    return storage.optuna.get_study_id_from_name(name)


def begun(storage: Storage, study: optuna.Study) -> optuna.Trial:
    """A new trial that runs."""
    return optuna.Trial(study, storage.optuna.create_new_trial(study_id(storage, study.study_name)))
