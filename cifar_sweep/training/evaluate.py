"""Loss and accuracy of a network on batches of images."""

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
) -> Evaluation:
    """Evaluate `network` on (images [batch, 3, 32, 32], labels [batch]), reading from the device once, at the end.

    Leaves the network in evaluation mode.
    """
    network.eval()
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    images_seen = 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for images, labels in batches:
            logits = network(images).float()
            loss += functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
            images_seen += len(labels)
    return Evaluation(loss.item() / images_seen, correct.item() / images_seen, images_seen)
