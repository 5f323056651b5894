"""Loss and accuracy of networks on batches of images."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each member's cross-entropy in nats for each image [K, batch], from logits [K, batch, classes]."""
    each = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return each.view(len(logits), -1)


def evaluate(
    network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, precision: str, device: torch.device
) -> tuple[list[float], list[float]]:
    """The members' mean losses (nats) and accuracies (fractions) over all images of the batches.

    `network` gives logits [K, batch, classes] for images [batch, 3, 32, 32]. It is left in evaluation mode. The device
    is read from once, at the end.
    """
    network.eval()
    losses: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    images_seen = 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for images, labels in batches:
            logits = network(images).float()
            losses.append(losses_of(logits, labels).sum(dim=1))
            correct.append((logits.argmax(dim=2) == labels).sum(dim=1))
            images_seen += len(labels)
    sums = torch.stack([torch.stack(losses).sum(dim=0), torch.stack(correct).sum(dim=0).float()]).tolist()
    mean_losses, accuracies = ([total / images_seen for total in each] for each in sums)
    return mean_losses, accuracies
