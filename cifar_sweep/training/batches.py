"""Batches by index from images that stay on the device as uint8."""

from collections.abc import Iterator
from itertools import starmap

import torch
from torch import Tensor

from cifar_sweep.config import derive_seed
from cifar_sweep.errors import UsageError
from cifar_sweep.training.augmentation import Augmented
from cifar_sweep.training.images.data import ImageData

CHUNK_PIXELS = 2048 * 32**2  # of images converted at once for several batches; 25 MB in float32
# Images at a time where nothing is learnt: what fits into the caches of a CPU (docs/LOG.md, 2026-11-22). On a GPU, too:
# a group takes them for all its members at once, and is to need no more memory than in training.
EVALUATION_BATCH = 200


class Batches:
    """The data, resident on `device`, handed out in batches by index; `train_images` is the number trained on."""

    def __init__(
        self,
        data: ImageData,
        *,
        device: torch.device,
        train_images: int = 0,
        validation_images: int = 0,
        normalize: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move the images to `device` as uint8; on the CPU they stay in the memory map.

        Of the training and of the validation part so many images are used, class by class alike; 0 is all. UsageError
        if there are fewer. `normalize` subtracts the training part's channel mean and divides by its deviation; else
        pixels are in [0, 1]. `dtype` is that of the batches' images.
        """
        train_index, validation_index = data.divide(validation_images=validation_images)
        if not 0 <= train_images <= len(train_index):
            raise UsageError(
                f"train_images = {train_images} is not accepted; the training part of {data.name} has "
                f"{len(train_index):,} images, and 0 is all of them."
            )
        self.device = device
        self.train_images = train_images or len(train_index)
        self._data = data
        self._train_index = train_index[: self.train_images]
        self._validation_index = validation_index
        self._images = data.train_images.to(device)
        self._labels = data.train_labels.to(device)
        self._dtype = dtype
        # Pixels are converted in this one: a half precision would round twice.
        self._arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
        self._normalize = normalize
        # A channel that is the same everywhere has no deviation; dividing by 1 leaves it at 0.
        numbers = [data.channel_mean, [deviation or 1.0 for deviation in data.channel_std]]
        self._mean, self._std = torch.tensor(numbers, dtype=self._arithmetic, device=device).view(2, 3, 1, 1)

    def class_counts(self) -> Tensor:
        """How many of the training images used are of each class, on the CPU."""
        return torch.bincount(self._data.train_labels[self._train_index], minlength=len(self._data.classes))

    def check_batch_size(self, batch_size: int) -> None:
        """Raise UsageError when `batch_size` is below 1 or above the number of training images used."""
        if not 1 <= batch_size <= self.train_images:
            raise UsageError(
                f"batch_size = {batch_size} is not accepted; with {self.train_images:,} training images it takes 1 to "
                f"{self.train_images:,}."
            )

    def train(
        self, batch_size: int, *, seed: int, epoch: int, change: Augmented | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch: images [b, 3, side, side] in channels_last memory format, and labels int64 [b].

        With images `change`d, labels may be shares of the classes [b, classes].
        The order depends on `seed`, `epoch` and the images used alone: it is the same on every device, and an epoch
        does not need the ones before it. The last batch may be smaller; a last batch of one image is left out, since
        batch normalisation cannot train on one. Raises UsageError as `check_batch_size` does.
        """
        self.check_batch_size(batch_size)
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        leaves_one = batch_size > 1 and self.train_images % batch_size == 1
        order = torch.randperm(self.train_images, generator=generator)[: self.train_images - leaves_one]
        return self._batches(self._images, self._labels, self._train_index[order], batch_size, change)

    def validation(self, batch_size: int = EVALUATION_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the validation images in fixed order, as `train` does."""
        return self._batches(self._images, self._labels, self._validation_index, batch_size)

    def test(self, batch_size: int = EVALUATION_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all test images in fixed order, as `train` does; only this call moves them to the device."""
        images, labels = self._data.test_images.to(self.device), self._data.test_labels.to(self.device)
        return self._batches(images, labels, torch.arange(len(labels)), batch_size)

    def _batches(
        self, images: Tensor, labels: Tensor, index: Tensor, batch_size: int, change: Augmented | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gather and convert many batches at once: at small batches a step must not pay for it in tiny operations."""
        per_chunk = max(1, CHUNK_PIXELS // (batch_size * images.shape[1] * images.shape[2])) * batch_size
        for rows in torch.split(index.to(self.device), per_chunk):
            pixels = self._convert(images.index_select(0, rows), change)
            chosen = labels.index_select(0, rows)
            batches = zip(torch.split(pixels, batch_size), torch.split(chosen, batch_size), strict=True)
            yield from starmap(change.mixed, batches) if change else batches

    def _convert(self, rows: Tensor, change: Augmented | None) -> Tensor:
        if change:
            rows = change.moved(rows)
        # The permuted NHWC rows are channels_last already, and `to` keeps that.
        pixels = rows.permute(0, 3, 1, 2).to(self._arithmetic).div_(255)
        if change:
            pixels = change.coloured(pixels)
        if self._normalize:
            pixels.sub_(self._mean).div_(self._std)
        if change:
            pixels = change.cut(pixels).contiguous(memory_format=torch.channels_last)
        return pixels.to(self._dtype)
