"""Test accuracies of a study's networks, each measured once and remembered in the study."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.errors import StudyError
from cifar_sweep.exports.classifier import Classifier, accuracy, predict
from cifar_sweep.exports.trained import WeightsNotKeptError, trained_trial
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """The test set of a study, on which its kept weights are measured; loaded when the first network is."""

    __test__ = False  # not one of pytest's

    study: SweepStudy
    load: Callable[[], ImageData]
    artifacts: Artifacts
    device: torch.device

    @cached_property
    def _data(self) -> ImageData:
        return self.load()

    def accuracy(self, trials: Sequence[TrialRecord]) -> float | None:
        """Test accuracy (a fraction) of the trials' mean probabilities, in float32, as an export measures it.

        None where a trial is not complete, its weights were not kept, or, with a warning, its file is damaged. Raises
        StudyError where the data is not the study's.
        """
        numbers = [trial.number for trial in trials]
        known = self.study.test_accuracy(numbers)
        if known is not None:
            return known
        if any(trial.state != "complete" for trial in trials):
            return None
        try:
            members = [trained_trial(self.study, trial, self.artifacts) for trial in trials]
        except WeightsNotKeptError:
            return None
        except StudyError as error:
            shown = ", ".join(map(str, numbers))
            log.warning("trial %s of study %s has no test accuracy: %s", shown, self.study.name, error)
            return None
        data = self._data
        self.study.check_data(name=data.name, fingerprint=data.fingerprint)
        classifier = Classifier(members, mean=data.channel_mean, std=data.channel_std)
        test = predict(classifier, Batches(data, device=self.device).test(), device=self.device)
        measured = accuracy(test.mean, test.labels)
        self.study.record_test(numbers, measured)
        return measured
