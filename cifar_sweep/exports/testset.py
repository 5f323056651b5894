"""Test accuracies of a study's networks, each measured once and remembered in the study."""

import logging
from collections.abc import Callable, Sequence

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


def accuracy_on_test(
    study: SweepStudy,
    trials: Sequence[TrialRecord],
    load: Callable[[], ImageData],
    *,
    artifacts: Artifacts,
    device: torch.device,
) -> float | None:
    """Test accuracy (a fraction) of the trials' mean probabilities, in float32, as an export measures it.

    None where a trial is not complete, its weights were not kept, or, with a warning, its file is damaged. What has
    to be measured is measured on the images that `load` gives; StudyError where they are not the study's.
    """
    numbers = [trial.number for trial in trials]
    known = study.test_accuracy(numbers)
    if known is not None or any(trial.state != "complete" for trial in trials):
        return known
    try:
        members = [trained_trial(study, trial, artifacts) for trial in trials]
    except WeightsNotKeptError:
        return None
    except StudyError as error:
        log.warning("trial %s of study %s has no test accuracy: %s", ", ".join(map(str, numbers)), study.name, error)
        return None
    data = load()
    study.check_data(name=data.name, fingerprint=data.fingerprint)
    classifier = Classifier(members, mean=data.channel_mean, std=data.channel_std)
    test = predict(classifier, Batches(data, device=device).test(), device=device)
    measured = accuracy(test.mean, test.labels)
    study.record_test(numbers, measured)
    return measured
