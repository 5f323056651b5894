"""The one division of the training images into training and validation part."""

import heapq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import UsageError


def split(labels: Tensor, *, validation_images: int = 0, given: int = 0) -> tuple[Tensor, Tensor]:
    """Divide the training images 80:20 into training and validation part, class by class.

    Where the last so many images are `given` to validate on, they are the validation part.
    The seed is fixed: every study splits the same data alike, so that the numbers of different sweeps compare.
    Of `labels` int64 [n], gives the indices of the training part, ordered so that any prefix holds every class in its
    proportion to within one image; and those of the validation part, ascending: so many images of it as are asked for,
    class by class alike, 0 is all. UsageError if there are fewer. Each class has 2 images or more.
    """
    classes = labels.cpu().numpy()
    training, validation = [], []
    for number, size in enumerate(np.bincount(classes).tolist()):
        # RandomState, not Generator: its streams are frozen, so the split outlives every NumPy version.
        order = np.random.RandomState(derive_seed("split", number)).permutation(size)
        members = np.flatnonzero(classes == number)[order]
        held_out = members >= len(classes) - given if given else np.arange(size) < max(1, size // 5)
        validation.append(members[held_out])
        training.append(members[~held_out])
    there = sum(map(len, validation))
    if not 0 <= validation_images <= there:
        raise UsageError(
            f"validation_images = {validation_images} is not accepted; the validation part has {there:,} images, and 0 "
            "is all of them."
        )
    chosen = _interleave(validation)[: validation_images or there]
    return torch.from_numpy(_interleave(training)), torch.from_numpy(np.sort(chosen))


def _interleave(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Merge the parts into one sequence whose every prefix holds each part in proportion to within one element.

    Element j of a part with share w of the whole must come at a position p with (j - 1) / w < p < j / w + 1. Taking
    the earliest deadline first always succeeds: Baruah, Cohen, Plaxton, Varvel, Proportionate progress (1996).
    """
    sizes = [len(part) for part in parts]
    total = sum(sizes)
    waiting = [
        (0, -(-total // size), number, 0) for number, size in enumerate(sizes) if size
    ]  # release, deadline, part, j
    ready: list[tuple[int, int, int]] = []
    sequence = np.empty(total, dtype=np.int64)
    for position in range(total):
        while waiting and waiting[0][0] <= position:
            _, deadline, number, j = heapq.heappop(waiting)
            heapq.heappush(ready, (deadline, number, j))
        _, number, j = heapq.heappop(ready)
        sequence[position] = parts[number][j]
        j, size = j + 1, sizes[number]
        if j < size:
            heapq.heappush(waiting, (j * total // size, -(-(j + 1) * total // size), number, j))
    return sequence
