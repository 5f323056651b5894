"""What members are trained by: each its own smoothing and focus, the kind of loss and the classes' weights shared."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cifar_sweep.config import Knobs, Shape, TrialConfig

LEAST_DOUBT = 1e-7  # of a right answer, in the focal loss: below, its slope at small gammas is no number

LEAST_WEIGHT = 1e-12  # of a batch, all of whose images may weigh nothing


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Each member's cross-entropy in nats for each image [K, batch], from logits [K, batch, classes]."""
    each = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return each.view(len(logits), -1)


def class_weights(shape: Shape, count: Callable[[], Tensor]) -> Tensor | None:
    """The weight of each class; None where all weigh the same. `count` says how many images of each there are.

    Classes have weights of their own, as in ``class_weights_1``, before what all have.
    ``balanced`` is as in scikit-learn: a class that is half as frequent weighs twice, and the mean image weighs 1.
    """
    own = {name: value for name, value in shape.more if name.startswith("class_weights_")}
    match shape.class_weights:
        case "none":
            weights = torch.ones(shape.classes) if own else None
        case "balanced":
            counts = count()
            weights = counts.sum() / (len(counts) * counts.clamp_min(1))
        case text:
            weights = torch.tensor([float(part) for part in text.split(",")])
    if weights is not None:
        for number in range(1, shape.classes + 1):
            weights[number - 1] = float(own.get(f"class_weights_{number}", weights[number - 1]))
    return weights


class Loss:
    """Of the members of one shape. `weights` are those of the classes, as `class_weights` gives them."""

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor | None, *, device: torch.device) -> None:
        self._kind = configs[0].shape.loss
        knobs = [config.knobs for config in configs]
        self._smoothing = _column([each.label_smoothing for each in knobs], device)
        self._gamma = _column([each.focal_gamma for each in knobs], device)
        self._weights = None if weights is None else weights.to(device)
        self._is_plain = self._kind == "cross_entropy" and weights is None and not any(map(_smooths, knobs))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each member's loss over the batch [K], from logits [K, batch, classes] and labels.

        Labels are classes [batch], or shares of the classes [batch, classes]. The mean of images, in which an image
        weighs as much as its class.
        """
        if self._is_plain and labels.dim() == 1:
            return losses_of(logits, labels).mean(dim=1)
        targets = shares_of(labels, logits.shape[2]).to(logits.dtype)
        if self._kind == "f1":
            return self._f1(logits, targets)
        each = self._each(logits, targets)
        if self._weights is None:
            return each.mean(dim=1)
        image = targets @ self._weights.to(logits.dtype)
        if self._kind in ("mse", "bce"):  # in the others each class's term has its weight
            each = each * image
        return each.sum(dim=1) / image.sum().clamp_min(LEAST_WEIGHT)

    def _f1(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 less the mean of the classes' F1 in the batch, with probabilities for predictions; of all absent ones 0.

        The F1 of a class is what Milletari et al. (2016, arXiv 1606.04797) call Dice.
        """
        found = functional.softmax(logits, dim=2)
        wanted = _smoothed(targets, self._smoothing.to(logits.dtype), logits.shape[2])
        scores = 2 * (found * wanted).sum(dim=1) / (found + wanted).sum(dim=1).clamp_min(LEAST_WEIGHT)
        weights = torch.ones_like(scores[0]) if self._weights is None else self._weights.to(logits.dtype)
        return 1 - (scores * weights).sum(dim=1) / weights.sum().clamp_min(LEAST_WEIGHT)

    def _each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image [K, batch], for the classes' shares [batch, classes]."""
        smoothing, classes = self._smoothing.to(logits.dtype), logits.shape[2]
        if self._kind == "mse":
            apart = functional.softmax(logits, dim=2) - _smoothed(targets, smoothing, classes)
            return apart.square().mean(dim=2)
        if self._kind == "bce":
            smoothed = _smoothed(targets, smoothing, classes)
            return functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(dim=2)
        logs = functional.log_softmax(logits, dim=2)
        terms = -logs
        if self._kind == "focal":
            terms = terms * (-torch.expm1(logs)).clamp_min(LEAST_DOUBT) ** self._gamma.to(logits.dtype)
        if self._weights is not None:
            terms = terms * self._weights.to(logits.dtype)
        return (1 - smoothing[:, 0]) * (terms * targets).sum(dim=2) + smoothing[:, 0] * terms.mean(dim=2)


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """Labels as shares of the classes [batch, classes]: those of single ones are 1 or 0. Waits for no device."""
    return labels if labels.dim() == 2 else labels[:, None] == torch.arange(classes, device=labels.device)


def _smooths(knobs: Knobs) -> bool:
    return knobs.label_smoothing > 0


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None, None]


def _smoothed(targets: Tensor, smoothing: Tensor, classes: int) -> Tensor:
    """The members' targets [K, batch, classes]."""
    return (1 - smoothing) * targets + smoothing / classes
