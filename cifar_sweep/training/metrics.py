"""What trials are chosen by where that is neither loss nor accuracy, counted batch by batch on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def counts(metric: str, logits: Tensor, labels: Tensor) -> Tensor | None:
    """What a batch adds to a figure of `metric`, from logits [K, batch, classes]; None where nothing is to be counted.

    For top5 how often the right class is among the five most probable ones [K]; for f1 how many images of each class
    are named rightly, how many are named so, and how many there are [K, 3, classes].
    """
    if metric == "top5":
        return (logits.topk(5, dim=2).indices == labels[:, None]).any(dim=2).sum(dim=1)
    if metric == "f1":
        classes = torch.arange(logits.shape[2], device=logits.device)
        named = logits.argmax(dim=2)[:, :, None] == classes
        right = (labels[:, None] == classes).expand_as(named)
        return torch.stack([named & right, named, right], dim=1).sum(dim=2)
    return None


def figures(batches: Sequence[Tensor], *, images: int) -> Tensor:
    """Each member's figure [K] by the counts of all batches: a share of the images, or the mean of the classes' F1."""
    total = torch.stack(list(batches)).sum(dim=0).float()
    if total.dim() == 1:
        return total / images
    both, named, there = total.unbind(dim=1)
    return (2 * both / (named + there).clamp_min(1)).mean(dim=1)  # of a class that is neither there nor named it is 0
