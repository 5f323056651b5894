"""The database as the queue: which studies are to be worked on, in which order."""

from collections.abc import Callable, Collection, Iterator

import optuna

from cifar_sweep.errors import StudyError
from cifar_sweep.search.opening import load, load_known
from cifar_sweep.search.storage import CANCELLED, OPEN, Storage
from cifar_sweep.search.study import SweepStudy


def open_studies(storage: Storage, names: Collection[str] = ()) -> Iterator[SweepStudy]:
    """The studies that have trials to train (of `names`, if any are given): highest priority first, then the oldest."""
    known = [
        (name, attributes)
        for name, attributes in storage.studies()
        if "sweep" in attributes and attributes.get("state", OPEN) == OPEN and (not names or name in names)
    ]
    for name, _ in sorted(known, key=lambda each: -each[1].get("priority", 0)):
        try:
            study = load_known(storage, name)
        except KeyError:  # it was deleted just now
            continue
        if not study.settle():
            yield study


def delete(storage: Storage, name: str, *, remove_files: Callable[[SweepStudy], None]) -> None:
    """Delete a study with all its trials, and first their files, so that none is left that nobody knows of.

    Raises:
        StudyError: its trials are still being trained; they are told to stop.
    """
    study = load(storage, name)
    study.set_state(CANCELLED)
    with storage.lock():
        running = study.summary()["trials"]["running"]
    if running:
        raise StudyError(
            f"study {name!r}: {running} of its trials are being trained; they stop within "
            f"{storage.heartbeat_seconds:.0f} s or so: delete it then."
        )
    remove_files(study)  # it may take a while, and nobody takes trials of a cancelled study
    with storage.lock():
        optuna.delete_study(study_name=name, storage=storage.optuna)
