"""What the dashboard shows: the study database, with notes, figures, files and short facts laid over our own studies.

Nothing of this is in the database. Reads are answered as Optuna's storage would, and what is laid over is made for the
moment; writes, where the dashboard lets any through, go to the database itself. Others' studies are shown as they are.
"""

import copy
import functools
import logging
import re
from collections.abc import Container, ItemsView, Iterator, Mapping
from functools import cached_property
from typing import Any

import optuna
from bottle import HTTPError  # type: ignore[import-untyped]

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.dashboard.notes import with_own
from cifar_sweep.dashboard.view import PLOT, StudyView
from cifar_sweep.database.outage import explain
from cifar_sweep.errors import CifarSweepError
from cifar_sweep.study.opening import delete
from cifar_sweep.study.reading import PassedOn, ReadingStorage, laid_over
from cifar_sweep.study.record import is_reserved
from cifar_sweep.study.storage import Storage, key_of
from cifar_sweep.study.study import SweepStudy

log = logging.getLogger(__name__)
_TRIAL_NOTE = re.compile(r"dashboard:(\d+):(?=note_)")


class Overlay(PassedOn):
    """The storage that the dashboard is given, and its store of artifacts.

    Where it is `writable`, each note has a place for the reader's own.
    """

    def __init__(self, storage: Storage, *, writable: bool) -> None:
        self._storage = storage
        self._writable = writable
        self._reading = ReadingStorage(storage)  # type: ignore[abstract]
        self._shown: dict[int, StudyView] = {}
        self._files_go: set[int] = set()
        super().__init__(self._reading)

    def ours(self, study_id: int) -> StudyView | None:
        """A study of ours; None where it is another's, or gone."""
        try:
            return self._ours(study_id, self._behind.get_study_user_attrs(study_id))
        except KeyError:
            return None

    def _ours(self, study_id: int, attributes: Mapping[str, Any]) -> StudyView | None:
        if not {"sweep", "data", "uid"} <= attributes.keys():
            return None
        shown = self._shown.get(study_id)
        if shown is not None and shown.attributes == attributes:
            return shown
        try:
            name = self._behind.get_study_name_from_id(study_id)
            study = SweepStudy(self._storage, optuna.load_study(storage=self._behind, study_name=name))
        except (KeyError, CifarSweepError) as error:  # deleted just now, or made by a newer version
            log.debug("study %d is shown as it is stored: %s", study_id, error)
            return None
        if shown is None or shown.study.uid != study.uid:  # the keys of deleted studies are used again
            shown = self._shown[study_id] = StudyView(study, self._reading, study_id, attributes=attributes)
        shown.study, shown.attributes = study, attributes
        return shown

    @property
    def is_of_another(self) -> bool:
        """Whether a study has turned out to be another one than before under the same key."""
        return self._reading.replaced

    def warm(self) -> None:
        """Make all that is shown, so that who asks first need not wait for it."""
        try:
            for study in self.get_all_studies():
                dict(self.get_study_system_attrs(key_of(study)))
                self.get_all_trials(key_of(study), deepcopy=False)
        except Exception as error:  # who asks will be told
            log.debug("not read before somebody asks: %s", error)

    # What is shown

    def get_all_studies(self) -> list[Any]:
        try:
            studies = sorted(self._behind.get_all_studies())
        except Exception as error:  # asked first for each page: here the database's own word is told
            raise explain(error) or error from None
        return [laid_over(study, functools.partial(self._over, key_of(study))) for study in studies]

    def _over(self, study_id: int, user: Mapping[str, Any], system: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """The attributes that are shown of a study instead of its own; None where it is not ours."""
        ours = self._ours(study_id, user)
        return (ours.facts(), SystemAttributes(system, ours, writable=self._writable)) if ours else None

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        ours = self.ours(study_id)
        return self._behind.get_study_user_attrs(study_id) if ours is None else ours.facts()

    def get_study_system_attrs(self, study_id: int) -> Any:
        attributes, ours = self._behind.get_study_system_attrs(study_id), self.ours(study_id)
        return attributes if ours is None else SystemAttributes(attributes, ours, writable=self._writable)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[Any] | None = None) -> list[Any]:
        ours = self.ours(study_id)
        if ours is None:
            return self._behind.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        trials = [trial for trial in ours.trials() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    # What is written

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if is_reserved(key):
            raise HTTPError(409, f"{key} is cifar-sweep's own; the dashboard does not change it.")
        self._behind.set_trial_user_attr(trial_id, key, value)

    def delete_study(self, study_id: int) -> None:
        ours = self.ours(study_id)
        if ours is None:
            self._behind.delete_study(study_id)
            return
        files_go = study_id in self._files_go
        self._files_go.discard(study_id)
        try:
            delete(self._storage, ours.study.name, files=open_artifacts(ours.study.artifacts) if files_go else None)
        except CifarSweepError as error:
            raise HTTPError(409, str(error)) from None

    # Of a store of artifacts this is all that is asked: `with_downloads` answers reads, and `access` refuses writes.

    def remove(self, artifact_id: str) -> None:
        """Before a study is deleted with its files, this is asked for each of them: note it, `delete_study` does it."""
        self._files_go |= {key for key, shown in self._shown.items() if shown.has(artifact_id)}


class SystemAttributes(Mapping[str, Any]):
    """A study's system attributes, with notes and figures.

    optuna-dashboard looks through all of them for each trial, and more than once: with a note for each trial among
    them, that would be quadratic. So a trial's note is here from the moment that somebody asks whether there is one,
    which optuna-dashboard does before it looks, until the next trial's is asked for. Each request has its own.
    """

    def __init__(self, stored: Mapping[str, Any], study: StudyView, *, writable: bool) -> None:
        self._stored = stored
        self._study = study
        self._writable = writable
        self._asked: dict[str, Any] = {}

    @cached_property
    def _shown(self) -> dict[str, Any]:
        """All but the note that was asked for. A list of studies has no use for it, and never makes it."""
        note, figures = self._study.note_and_figures()
        return {
            **self._stored, **{f"{PLOT}{name}:0": figure for name, figure in figures.items()},
            **self._note("dashboard:", note),
        }  # fmt: skip

    def _note(self, begin: str, text: str) -> dict[str, Any]:
        """The attributes of a note, whose names begin so: ours, and below it the user's own."""
        own = {key: value for key, value in self._stored.items() if key.startswith(f"{begin}note_")}
        version = own.pop(f"{begin}note_ver", 0)
        theirs = "".join(own[key] for key in sorted(own, key=lambda key: int(key.rpartition(":")[2])))
        shown = with_own(text, theirs, invite=self._writable)
        # As many parts as there are: who saves a shorter one blanks the rest.
        return {f"{begin}note_ver": version, **dict.fromkeys(own, ""), f"{begin}note_str:0": shown}

    def __getitem__(self, key: str) -> Any:
        if found := _TRIAL_NOTE.match(key):
            _ = self._shown  # looks at the trials as they are now
            self._asked = self._note(found[0], self._study.trial_note(int(found[1])))
            return self._asked[key]
        return (self._shown if key.startswith((PLOT, "dashboard:note_")) else self._stored)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown | self._asked)

    def __len__(self) -> int:
        return len(self._shown | self._asked)

    def items(self) -> ItemsView[str, Any]:
        return (self._shown | self._asked).items()
