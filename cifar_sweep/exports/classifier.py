"""One trained network or several, as one module from pictures to probabilities."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_sweep.exports.trained import Trained


class Classifier(nn.Module):
    """The mean of the probabilities of one or more networks, its members.

    Each member normalises the pixels, whose channels in [0, 1] have this `mean` and `std`, as in its training: all take
    the same images. Images and probabilities are float32, also where the networks were made `half`. Raises as
    `Trained.network`.
    """

    def __init__(self, members: Sequence[Trained], *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.configs = tuple(member.config for member in members)
        self.members = nn.ModuleList([member.network() for member in members])
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        # A constant channel has no deviation and is divided by 1, as `Batches` does.
        self.register_buffer("std", torch.tensor([value or 1.0 for value in std]).view(3, 1, 1), persistent=False)
        self.eval()

    def by_member(self, images: Tensor) -> Tensor:
        """Probabilities [members, n, classes] of images [n, 3, side, side] in [0, 1]."""
        return torch.stack([self._probabilities(k, images) for k in range(len(self.configs))])

    def _probabilities(self, k: int, images: Tensor) -> Tensor:
        shape = self.configs[k].shape
        network: Any = self.members[k]
        logits: Any = network[:-1] if shape.softmax else network  # its last layer is the softmax below
        images = images.to(self.mean.dtype)
        output: Tensor = logits((images - self.mean) / self.std if shape.normalize else images)
        return output.float().softmax(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """The members' mean probabilities [n, classes]; as a sum, since OpenCV 4 gets a mean of a stack wrong."""
        total, *others = (self._probabilities(k, images) for k in range(len(self.configs)))
        for each in others:
            total = total + each
        return total / len(self.configs) if others else total


@dataclass(frozen=True)
class Predictions:
    """Probabilities [members, n, classes] and labels [n], on the CPU."""

    probabilities: Tensor
    labels: Tensor

    @property
    def mean(self) -> Tensor:
        """The members' mean probabilities [n, classes]."""
        return self.probabilities.mean(dim=0)


def predict(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device) -> Predictions:
    """Run `classifier` over batches of images in [0, 1], in float32."""
    classifier.to(device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        parts = [(classifier.by_member(images), labels) for images, labels in batches]
    probabilities, labels = zip(*parts, strict=True)
    return Predictions(torch.cat(probabilities, dim=1).cpu(), torch.cat(labels).cpu())


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The share of images whose most probable class is the right one, from [n, classes] and labels [n]."""
    return float((probabilities.argmax(dim=1) == labels).double().mean())


def measured(test: Predictions) -> dict[str, Any]:
    """What the mean probabilities come to on the test set, under the names of ``metrics.json``; the loss in nats."""
    right = test.mean.gather(1, test.labels[:, None]).squeeze(1).double()
    return {
        "test_accuracy": accuracy(test.mean, test.labels),
        "test_loss": float(-right.clamp_min(1e-30).log().mean()),
        "test_images": len(test.labels),
    }


def confusion(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """How often an image of class i (row) was taken for class j (column)."""
    classes = probabilities.shape[1]
    places = labels * classes + probabilities.argmax(dim=1)
    counts: list[list[int]] = torch.bincount(places, minlength=classes * classes).view(classes, classes).tolist()
    return counts
