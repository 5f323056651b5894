"""Where a study's files are kept, which of them are its own, and which are no longer needed."""

import re
import uuid
from collections.abc import Iterable

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.study.study import SweepStudy

# Others may keep theirs in the same folder.
_WRITTEN = re.compile(r"trial-\d+/\.?(checkpoint-\d+|weights)-[0-9a-f]+\.safetensors(\.[0-9a-f]+\.tmp)?")


def study_folder(study: SweepStudy) -> str:
    """Where a study's files are, in its store. The uid keeps studies of one name in two databases apart."""
    return f"{study.name}-{study.uid}"


def trial_folder(study: SweepStudy, number: int) -> str:
    """Where a trial's files are."""
    return f"{study_folder(study)}/trial-{number:04d}"


def is_own(study: SweepStudy, artifacts: Artifacts) -> bool:
    """Whether the files of the study's folder are surely those of this database, and not of one that it is a copy of.

    They are if the database is where it was, or is the same file in another place, or if they lie beside it.
    """
    storage, root = study.storage, artifacts.root
    if storage.folder and root and root.resolve().is_relative_to(storage.folder.resolve()):
        return True
    if study.home is None:  # made before that was noted
        return storage.folder is None
    return any(was and was == now for was, now in zip(study.home, storage.home(), strict=True))


def settle_in(study: SweepStudy, artifacts: Artifacts) -> None:
    """Have the study write its files apart from those of the database that it is a copy of; it still reads those."""
    with study.storage.lock():
        if list(study.storage.home()) != study.home:
            study.settle_in(uid=study.uid if is_own(study, artifacts) else uuid.uuid4().hex[:8])


def drop_needless(study: SweepStudy, artifacts: Artifacts) -> None:
    """Remove what finished trials have left, but for the weights that are kept."""
    trials = study.trials()
    finished = {trial_folder(study, trial.number) for trial in trials if trial.is_finished}
    kept = {trial.weights.name for trial in study.kept(trials) if trial.weights}
    there = artifacts.names(study_folder(study))
    remove(study, artifacts, (name for name in there if name.rpartition("/")[0] in finished and name not in kept))


def remove_files(study: SweepStudy, artifacts: Artifacts) -> None:
    """Remove every file of a study."""
    if is_own(study, artifacts):
        remove(study, artifacts, artifacts.names(study_folder(study)))


def remove(study: SweepStudy, artifacts: Artifacts, names: Iterable[str]) -> None:
    """Remove those of these files that the study has written itself."""
    for name in names:
        folder, _, rest = name.partition("/")
        if folder == study_folder(study) and _WRITTEN.fullmatch(rest):
            artifacts.remove(name)
