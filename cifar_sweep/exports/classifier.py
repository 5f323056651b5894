"""One or more trained networks as one thing that turns pictures into probabilities."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build


class Classifier(nn.Module):
    """Networks whose probabilities are averaged; one network is the plain case.

    Each member normalises the pixels as it was trained to, so that all of them take the same images.
    """

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        weights: Sequence[Mapping[str, Tensor]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Build the networks and load their weights.

        Args:
            configs: one per member.
            weights: their state dicts, in the same order.
            mean: the data's channel mean, pixels in [0, 1].
            std: the data's channel deviation.

        Raises:
            RuntimeError: weights that are not their config's.
        """
        super().__init__()
        self.configs = tuple(configs)
        networks = [build(config.shape, seed=0) for config in configs]
        for network, state in zip(networks, weights, strict=True):
            network.load_state_dict(dict(state))
        self.members = nn.ModuleList(networks)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        # A channel that is the same everywhere has no deviation; `Batches` divides it by 1, too.
        self.register_buffer("std", torch.tensor([value or 1.0 for value in std]).view(3, 1, 1), persistent=False)
        self.eval()

    def by_member(self, images: Tensor) -> Tensor:
        """Probabilities [members, n, classes] of images [n, 3, 32, 32] in [0, 1]."""
        found = []
        for config, network in zip(self.configs, self.members, strict=True):
            output = network((images - self.mean) / self.std if config.shape.normalize else images)
            found.append(output if config.shape.softmax else output.softmax(dim=1))
        return torch.stack(found)

    def forward(self, images: Tensor) -> Tensor:
        """The members' mean probabilities [n, classes]."""
        return self.by_member(images).mean(dim=0)


def resident(data: ImageData, *, device: torch.device, validation_images: int = 0) -> Batches:
    """`data` as a `Classifier` takes it: pixels in [0, 1], float32; of its validation part so many, 0 being all."""
    return Batches(data, device=device, validation_images=validation_images, dtype=torch.float32)


@dataclass(frozen=True)
class Predictions:
    """Probabilities [members, n, classes] and labels [n], on the CPU."""

    probabilities: Tensor
    labels: Tensor

    @property
    def mean(self) -> Tensor:
        """The members' mean probabilities [n, classes]."""
        return self.probabilities.mean(dim=0)

    def member(self, k: int) -> Tensor:
        """Probabilities [n, classes] of member `k`."""
        return self.probabilities[k]


def predict(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device) -> Predictions:
    """Run `classifier` over batches of `resident` images, in float32."""
    classifier.to(device).to(memory_format=torch.channels_last)
    found, labels = [], []
    with torch.no_grad():
        for images, right in batches:
            found.append(classifier.by_member(images))
            labels.append(right)
    return Predictions(torch.cat(found, dim=1).cpu(), torch.cat(labels).cpu())


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The share of images [n] whose most probable class, of [n, classes], is the right one."""
    return float((probabilities.argmax(dim=1) == labels).double().mean())


def loss(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative logarithm (nats) of the right class's probability, which is kept from 0."""
    right = probabilities.gather(1, labels[:, None]).squeeze(1).double()
    return float(-right.clamp_min(1e-30).log().mean())


def measured(test: Predictions) -> dict[str, Any]:
    """What the mean probabilities come to on the test set, under the names of ``metrics.json``."""
    return {
        "test_accuracy": accuracy(test.mean, test.labels),
        "test_loss": loss(test.mean, test.labels),
        "test_images": len(test.labels),
    }


def confusion(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """How often an image of class i (row) was taken for class j (column)."""
    classes = probabilities.shape[1]
    places = labels * classes + probabilities.argmax(dim=1)
    counts: Any = torch.bincount(places, minlength=classes * classes).view(classes, classes).tolist()
    return [list(map(int, row)) for row in counts]
