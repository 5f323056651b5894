"""What the best trial's network makes of the validation images: confusion, mistakes, samples; and its filters.

The test set is read here too, but only where its accuracy is not remembered yet, and then once (see `testset`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.errors import CifarSweepError
from cifar_sweep.exports.classifier import Classifier, Predictions, confusion, predict
from cifar_sweep.exports.pictures import data_uri
from cifar_sweep.exports.testset import accuracy_on_test
from cifar_sweep.exports.trained import trained_trial
from cifar_sweep.report.facts import ImageFindings, Mistake
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData

MISTAKES = 24  # fills rows of 3, 4, 6 or 8
SAMPLES = (10, 3)  # classes, and images of each
FILTERS = 64
FILTER_PIXELS = 8  # of a weight
MISTAKES_OF_A_PAIR = 3  # otherwise two classes that look alike fill the page


def look_at_images(
    study: SweepStudy,
    best: TrialRecord,
    load: Callable[[], ImageData],
    *,
    artifacts: Artifacts,
    device: torch.device,
    pictures: bool = True,
) -> ImageFindings:
    """Measure the best trial's test accuracy, if nobody has; and, with `pictures`, what it mistakes for what.

    A test accuracy is remembered in the study. What cannot be had is said in `ImageFindings.missing`.
    """
    lacking = [] if study.test_accuracy([best.number]) is not None else ["test accuracy"]
    lacking += ["confusion matrix"] if pictures else []
    try:
        trained = trained_trial(study, best, artifacts)
        data = load()
        study.check_data(name=data.name, fingerprint=data.fingerprint)
        classifier = Classifier([trained], mean=data.channel_mean, std=data.channel_std)
        accuracy_on_test(study, [best], lambda: data, artifacts=artifacts, device=device)
    except CifarSweepError as error:
        return ImageFindings(missing=f"Trial {best.number} is without {' and '.join(lacking)}: {error}")
    images = trained.config.shape.validation_images
    _, validation_index = data.divide(validation_images=images)
    findings = ImageFindings(
        validation_images=len(validation_index),
        test_images=len(data.test_labels),
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        classes=data.classes,
    )
    if not pictures:
        return findings
    batches = Batches(data, device=device, validation_images=images)
    found = predict(classifier, batches.validation(), device=device)
    pictured = data.train_images[validation_index]
    return replace(
        findings,
        samples=tuple(samples(found, pictured, classes=data.classes)),
        filters=tuple(first_filters(trained.network())),
        confusion=tuple(map(tuple, confusion(found.mean, found.labels))),
        mistakes=tuple(certain_mistakes(found, pictured, classes=data.classes)),
    )


def certain_mistakes(found: Predictions, images: torch.Tensor, *, classes: tuple[str, ...]) -> list[Mistake]:
    """The mistakes that the network was surest of in uint8 images [n, side, side, 3], few of each pair of classes."""
    probability, taken = found.mean.max(dim=1)
    wrong = (taken != found.labels).nonzero().flatten()
    order = wrong[probability[wrong].argsort(descending=True, stable=True)]
    shown: list[Mistake] = []
    pairs: Counter[tuple[int, int]] = Counter()
    for index in order.tolist():
        pair = int(found.labels[index]), int(taken[index])
        pairs[pair] += 1
        if pairs[pair] <= MISTAKES_OF_A_PAIR:
            right, said = (classes[label] for label in pair)
            shown.append(Mistake(right, said, float(probability[index]), data_uri(images[index])))
        if len(shown) == MISTAKES:
            break
    return shown


def samples(found: Predictions, images: torch.Tensor, *, classes: tuple[str, ...]) -> list[Mistake]:
    """The first images of each of the first classes and what they were taken for, of uint8 [n, side, side, 3]."""
    probability, taken = found.mean.max(dim=1)
    shown = []
    for label in range(min(len(classes), SAMPLES[0])):
        for index in (found.labels == label).nonzero().flatten()[: SAMPLES[1]].tolist():
            said = classes[int(taken[index])]
            shown.append(Mistake(classes[label], said, float(probability[index]), data_uri(images[index])))
    return shown


def first_filters(network: nn.Module) -> list[str]:
    """The filters of the first convolution as pictures: colours where it sees three channels, else greys.

    Each has its own scale, from its smallest weight to its largest. None where no convolution looks at the images.
    """
    first = next((layer.weight.detach() for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.shape[1] not in (1, 3) or first.shape[2] < 2:
        return []
    shown = first[:FILTERS].float().permute(0, 2, 3, 1)
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    pixels = (255 * (shown - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    large = pixels.repeat_interleave(FILTER_PIXELS, dim=1).repeat_interleave(FILTER_PIXELS, dim=2)
    return [data_uri(each.expand(-1, -1, 3).contiguous()) for each in large]
