"""Loss and accuracy of networks on batches of images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy loss (nats) and accuracy (a fraction) over `images` images."""

    loss: float
    accuracy: float
    images: int


def evaluate(
    network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, precision: str, device: torch.device
) -> list[Evaluation]:
    """Evaluate each member of `network`, which gives logits [K, batch, classes] for images [batch, 3, 32, 32].

    Reads from the device once, at the end. Leaves the network in evaluation mode.
    """
    network.eval()
    losses: list[torch.Tensor] = []
    correct: list[torch.Tensor] = []
    images_seen = 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for images, labels in batches:
            logits = network(images).float()
            each = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
            losses.append(each.view(len(logits), -1).sum(dim=1))
            correct.append((logits.argmax(dim=2) == labels).sum(dim=1))
            images_seen += len(labels)
    sums = torch.stack([torch.stack(losses).sum(dim=0), torch.stack(correct).sum(dim=0).float()]).tolist()
    return [Evaluation(loss / images_seen, right / images_seen, images_seen) for loss, right in zip(*sums, strict=True)]
