"""Test accuracies of a study's networks, each measured once and remembered in the study."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.errors import StudyError
from cifar_sweep.exports.classifier import accuracy, predict, resident
from cifar_sweep.exports.trained import Trained, WeightsNotKeptError, classifier_of, trained_trial
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.images.data import ImageData

log = logging.getLogger(__name__)


class TestSet:
    """The test set of a study, loaded when the first network is measured.

    Args:
        study: the trials' study.
        load: gives the study's images.
        artifacts: where the study's kept weights are.
        device: where to measure.
    """

    __test__ = False  # not one of pytest's

    def __init__(
        self, study: SweepStudy, load: Callable[[], ImageData], *, artifacts: Artifacts, device: torch.device
    ) -> None:
        self._study = study
        self._load = load
        self._artifacts = artifacts
        self._device = device

    @cached_property
    def _data(self) -> ImageData:
        return self._load()

    def remembered(self, trials: Sequence[TrialRecord]) -> dict[int, float]:
        """As `accuracies`, but of the trials that were measured before."""
        return _known({trial.number: self._study.test_accuracy([trial.number]) for trial in trials})

    def accuracies(self, trials: Sequence[TrialRecord]) -> dict[int, float]:
        """Test accuracies (fractions) of the complete trials among `trials`, by number.

        A trial whose weights were not kept is left out. So is one whose file is damaged, with a warning.

        Raises:
            StudyError: the data is not the study's.
        """
        return _known({trial.number: self.accuracy([trial]) for trial in trials})

    def accuracy(self, trials: Sequence[TrialRecord]) -> float | None:
        """Test accuracy (a fraction) of the trials' mean probabilities; None where `accuracies` leaves a trial out."""
        numbers = [trial.number for trial in trials]
        known = self._study.test_accuracy(numbers)
        if known is not None:
            return known
        members = [member for member in map(self._trained, trials) if member is not None]
        if len(members) < len(trials):
            return None
        measured = self._measure(members)
        self._study.record_test(numbers, measured)
        return measured

    def _trained(self, trial: TrialRecord) -> Trained | None:
        if trial.state != "complete":
            return None
        try:
            return trained_trial(self._study, trial, self._artifacts)
        except WeightsNotKeptError:
            return None
        except StudyError as error:
            log.warning("trial %d of study %s has no test accuracy: %s", trial.number, self._study.name, error)
            return None

    def _measure(self, members: Sequence[Trained]) -> float:
        """The members' test accuracy (a fraction), in float32, as an export measures it."""
        data = self._data
        self._study.check_data(name=data.name, fingerprint=data.fingerprint)
        test = predict(classifier_of(members, data), resident(data, device=self._device).test(), device=self._device)
        return accuracy(test.mean, test.labels)


def _known(accuracies: Mapping[int, float | None]) -> dict[int, float]:
    return {number: accuracy for number, accuracy in accuracies.items() if accuracy is not None}
