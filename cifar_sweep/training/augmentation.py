"""Training images changed at random: what is drawn follows from the seed of the data and the epoch alone.

So it does not depend on the device, nor on who trains in the group: members share the changed batches.
"""

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from cifar_sweep.config import Shape, derive_seed
from cifar_sweep.training.losses import shares_of
from cifar_sweep.training.policies import POLICIES, Policy

# What a set is made of: the share of images that are mirrored, whether they are shifted on a padded image, the largest
# shift as a share of the side, the largest angle in degrees, zoom and colour as shares.
SETS: dict[str, dict[str, float]] = {
    "none": {},
    "flip": {"flip": 0.5},
    "crop": {"flip": 0.5, "crop": True},
    "affine": {"shift": 0.1, "rotation": 15.0, "zoom": 0.1},
    "color": {"color": 0.2},
    **{name: {"flip": 0.5, "crop": True} for name in POLICIES},
}
STRENGTHS = (
    "flip", "vertical_flip", "shift", "rotation", "zoom", "color", "brightness", "contrast", "saturation",
)  # fmt: skip
PARTS = ("brightness", "contrast", "saturation")  # of colour
PADDED = 8  # a crop is padded by this part of the side: 4 of 32 pixels
GREY = (0.2989, 0.587, 0.114)  # of red, green, blue, as torchvision has it


def augmented(shape: Shape, epoch: int) -> "Augmented | None":
    """What changes the images of an epoch; None where nothing does."""
    own = {name: getattr(shape, name) for name in STRENGTHS}
    strengths = SETS[shape.augmentation] | {name: value for name, value in own.items() if value}
    if not strengths and not (shape.cutout or shape.mixup or shape.cutmix):
        return None
    return Augmented(shape, strengths, epoch)


class Augmented:
    """The images of one epoch. Its methods are to be called in order, for one part of the epoch after the other."""

    def __init__(self, shape: Shape, strengths: Mapping[str, float], epoch: int) -> None:
        self._shape, self._strengths = shape, strengths
        self._generator = torch.Generator().manual_seed(derive_seed(shape.data_seed, "augmentation", epoch))
        self._batches = random.Random(derive_seed(shape.data_seed, "mixing", epoch))  # noqa: S311 - no secret
        self._policy = _policy(shape) if shape.augmentation in POLICIES else None

    def moved(self, images: Tensor) -> Tensor:
        """Images as bytes [n, side, side, 3], mirrored and shifted, and then changed as the policy has it."""
        pad = images.shape[1] // PADDED if self._strengths.get("crop") else 0
        if pad or self._strengths.get("flip"):
            images = self._cropped(images, pad)
        if share := self._strengths.get("vertical_flip"):
            turned = (torch.rand(len(images), 1, 1, 1, generator=self._generator) < share).to(images.device)
            images = torch.where(turned, images.flip(1), images)
        if self._policy is None:
            return images
        return self._policy(images.permute(0, 3, 1, 2), self._generator).permute(0, 2, 3, 1)

    def _cropped(self, images: Tensor, pad: int) -> Tensor:
        count, side = images.shape[:2]
        down, right = torch.randint(2 * pad + 1, (2, count, 1), generator=self._generator)
        columns = torch.arange(side).expand(count, side)
        mirrored = torch.rand(count, 1, generator=self._generator) < self._strengths.get("flip", 0.0)
        columns = torch.where(mirrored, columns.flip(1), columns) + right
        rows = (torch.arange(side) + down).to(images.device)
        padded = functional.pad(images, [0, 0, pad, pad, pad, pad])
        at = torch.arange(count, device=images.device)[:, None, None]
        return padded[at, rows[:, :, None], columns.to(images.device)[:, None, :]]

    def coloured(self, images: Tensor) -> Tensor:
        """Images from 0 to 1 [n, 3, side, side], turned and zoomed, and with other colours."""
        if any(self._strengths.get(name) for name in ("shift", "rotation", "zoom")):
            images = self._warped(images)
        return self._jittered(images) if any(self._strengths.get(name) for name in ("color", *PARTS)) else images

    def _uniform(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """Numbers between the strength of this name and its negative."""
        return (self._signed(*shape) * self._strengths.get(name, 0.0)).to(like.device, like.dtype)

    def _signed(self, *shape: int) -> Tensor:
        """Numbers from -1 to 1."""
        return 2 * torch.rand(shape, generator=self._generator, dtype=torch.float64) - 1

    def _warped(self, images: Tensor) -> Tensor:
        count = len(images)
        angle = self._uniform("rotation", count, like=images) * (math.pi / 180)
        scale = 1 + self._uniform("zoom", count, like=images)
        shift = 2 * self._uniform("shift", count, 2, 1, like=images)  # a side is 2 long
        cos, sin = angle.cos() / scale, angle.sin() / scale
        back = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
        grid = functional.affine_grid(torch.cat([back, -back @ shift], dim=2), list(images.shape), align_corners=False)
        warped: Tensor = functional.grid_sample(images, grid, align_corners=False)
        return warped

    def _jittered(self, images: Tensor) -> Tensor:
        """Brightness, contrast and saturation, one after the other."""
        all_alike = self._strengths.get("color", 0.0)
        strengths = [self._strengths.get(name, all_alike) for name in PARTS]
        drawn = self._signed(3, len(images), 1, 1, 1) * torch.tensor(strengths, dtype=torch.float64).view(3, 1, 1, 1, 1)
        bright, contrast, saturation = (1 + drawn.to(images.device, images.dtype)).clamp_min(0)
        images = (images * bright).clamp(0, 1)
        images = (contrast * images + (1 - contrast) * _grey(images).mean(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
        jittered: Tensor = saturation * images + (1 - saturation) * _grey(images)
        return jittered.clamp(0, 1)

    def cut(self, images: Tensor) -> Tensor:
        """Normalised images, each with a square of 0 around a pixel of it."""
        length = self._shape.cutout
        if not length:
            return images
        side = images.shape[2]
        begins = torch.randint(side, (2, len(images), 1), generator=self._generator) - length // 2
        at = torch.arange(side)
        down, right = (((at >= begin) & (at < begin + length)).to(images.device) for begin in begins)
        return images.masked_fill((down[:, :, None] & right[:, None, :])[:, None], 0)

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch with each image mixed with the one before it, and labels as shares of the classes then."""
        shape = self._shape
        if not (shape.mixup or shape.cutmix):
            return images, labels
        cuts = bool(shape.cutmix) and (not shape.mixup or self._batches.random() < 0.5)
        alpha = shape.cutmix if cuts else shape.mixup
        share = self._batches.betavariate(alpha, alpha)
        at = self._batches.randrange(images.shape[3]), self._batches.randrange(images.shape[2])
        targets = shares_of(labels, shape.classes).float()
        if self._batches.random() >= shape.mix_probability:
            return images, targets
        other = images.roll(1, 0)
        if cuts:
            images, share = _pasted(images, other, share, at)
        else:
            images = other.lerp(images, share)
        images = images.contiguous(memory_format=torch.channels_last)
        return images, targets.roll(1, 0).lerp(targets, share)


def _policy(shape: Shape) -> Policy:
    ours = {"operations": shape.randaugment_operations, "magnitude": shape.randaugment_magnitude}
    return Policy(shape.augmentation, **ours)


def _pasted(images: Tensor, other: Tensor, share: float, at: tuple[int, int]) -> tuple[Tensor, float]:
    """A box around `at` (x, y) of the other images in the images, which keep about this share; and what they keep."""
    high, wide = images.shape[2:]
    reach = 0.5 * math.sqrt(1 - share)
    left, right = max(int(at[0] - reach * wide), 0), min(int(at[0] + reach * wide), wide)
    top, bottom = max(int(at[1] - reach * high), 0), min(int(at[1] + reach * high), high)
    images = images.clone()
    images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return images, 1 - (right - left) * (bottom - top) / (wide * high)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2])[:, None]
