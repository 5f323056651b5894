"""Optuna's private names: which are used, that they are there, and that one file alone uses them."""

import inspect
import re
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

import cifar_sweep
from cifar_sweep.study.storage import Database, Storage
from tests.study.plain_studies import begun

PRIVATE = {"_study_id", "_trial_id", "_cached_frozen_trial", "_get_trials", "_get_stale_trial_ids", "_set_trial_param"}
USE = re.compile(r"(?<!self)\.(_[a-z]\w*)|def (_get_trials|_set_trial_param)\b")


def test_one_file_uses_them() -> None:
    package = Path(cifar_sweep.__file__).parent
    use = re.compile(rf"(?:\.|def )({'|'.join(PRIVATE)})\b")
    found = {path.name: set(use.findall(path.read_text())) for path in package.rglob("*.py")}
    assert {name: used for name, used in found.items() if used} == {"storage.py": PRIVATE}


def test_they_are_all_that_it_uses() -> None:
    source = Path(inspect.getfile(Storage)).read_text()
    assert {name or method for name, method in USE.findall(source)} == PRIVATE


def test_optuna_has_them(storage: Storage, name: str) -> None:
    study = optuna.create_study(storage=storage.optuna, study_name=name)
    trial = begun(storage, study)
    [frozen] = study.get_trials(deepcopy=False)
    key = storage.optuna.get_study_id_from_name(name)
    assert study._study_id == key
    assert key in [each._study_id for each in storage.optuna.get_all_studies()]
    assert trial._trial_id == frozen._trial_id == trial._cached_frozen_trial._trial_id
    assert list(storage.optuna._get_stale_trial_ids(key)) == []


def test_our_reading_takes_the_place_of_optunas() -> None:
    ours, theirs = (inspect.signature(each._get_trials) for each in (Database, RDBStorage))
    assert list(ours.parameters) == list(theirs.parameters)
    ours, theirs = (inspect.signature(each._set_trial_param) for each in (Database, RDBStorage))
    assert len(ours.parameters) == len(theirs.parameters)
    assert "_set_trial_param(" in inspect.getsource(optuna.storages.get_storage("sqlite://").__class__)
    assert "_get_trials(" in inspect.getsource(optuna.storages.get_storage("sqlite://").__class__), "the cache calls it"
