"""torchvision's augmentation policies, each image by its own draw, those that drew the same in one call.

The only file that uses torchvision's private names: its public calls draw once for a whole batch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

POLICIES = ("autoaugment", "randaugment", "trivialaugment")
_Change = tuple[str, float]  # an operation and its magnitude
_IDENTITY: _Change = ("Identity", 0.0)


class Policy:
    """A policy by name, as torchvision has it; AutoAugment's is that of CIFAR-10.

    RandAugment has so many operations of a magnitude up to 30.
    """

    def __init__(self, name: str, *, operations: int = 2, magnitude: int = 9) -> None:
        from torchvision.transforms import v2  # takes a second to load

        self._drawn: Callable[[int, int, torch.Generator], Iterator[Sequence[_Change]]]
        match name:
            case "autoaugment":
                self._policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
                self._drawn = self._pairs
            case "randaugment":
                self._policy = v2.RandAugment(operations, magnitude)
                self._drawn = self._alike
            case _:
                self._policy = v2.TrivialAugmentWide()
                self._drawn = self._any

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images as bytes [n, 3, side, side], changed."""
        images = images.clone()
        for changes in self._drawn(len(images), images.shape[2], generator):
            alike: dict[_Change, list[int]] = defaultdict(list)
            for row, change in enumerate(changes):
                alike[change].append(row)
            alike.pop(_IDENTITY, None)
            for (name, magnitude), found in alike.items():
                rows = torch.tensor(found, device=images.device)
                images[rows] = self._policy._apply_image_or_video_transform(
                    images[rows], name, magnitude, interpolation=self._policy.interpolation, fill=self._policy._fill
                )
        return images

    def _magnitudes(self, name: str, bins: int, side: int) -> tuple[list[float], bool]:
        """The magnitudes of an operation, and whether they are negative as often."""
        make, signed = self._policy._AUGMENTATION_SPACE[name]
        made = make(bins, side, side)
        return [0.0] * bins if made is None else made.tolist(), signed

    def _pairs(self, count: int, side: int, generator: torch.Generator) -> Iterator[Sequence[_Change]]:
        """AutoAugment: one of some pairs of operations, each with a probability."""
        chosen = torch.randint(len(self._policy._policies), (count,), generator=generator).tolist()
        taken, signs = torch.rand(2, 2, count, generator=generator).tolist()
        used = {name for pair in self._policy._policies for name, _, _ in pair}
        known = {name: self._magnitudes(name, 10, side) for name in used}
        for place in range(2):
            changes = []
            for row, pair in enumerate(chosen):
                name, probability, at = self._policy._policies[pair][place]
                magnitudes, signed = known[name]
                sign = -1 if signed and signs[place][row] <= 0.5 else 1
                is_taken = taken[place][row] <= probability
                changes.append((name, sign * magnitudes[at or 0]) if is_taken else _IDENTITY)
            yield changes

    def _alike(self, count: int, side: int, generator: torch.Generator) -> Iterator[Sequence[_Change]]:
        """RandAugment: operations of one magnitude."""
        policy = self._policy
        at = torch.full((policy.num_ops, count), policy.magnitude)
        return self._drawn_from_all(at, policy.num_magnitude_bins, side, generator)

    def _any(self, count: int, side: int, generator: torch.Generator) -> Iterator[Sequence[_Change]]:
        """TrivialAugment: an operation of any magnitude."""
        bins = self._policy.num_magnitude_bins
        return self._drawn_from_all(torch.randint(bins, (1, count), generator=generator), bins, side, generator)

    def _drawn_from_all(
        self, at: Tensor, bins: int, side: int, generator: torch.Generator
    ) -> Iterator[Sequence[_Change]]:
        known = {name: self._magnitudes(name, bins, side) for name in self._policy._AUGMENTATION_SPACE}
        names = list(known)
        chosen = torch.randint(len(names), at.shape, generator=generator).tolist()
        signs = torch.rand(at.shape, generator=generator).tolist()
        for places, those, draws in zip(at.tolist(), chosen, signs, strict=True):
            changes = []
            for place, one, draw in zip(places, those, draws, strict=True):
                magnitudes, signed = known[names[one]]
                changes.append((names[one], (-1 if signed and draw <= 0.5 else 1) * magnitudes[place]))
            yield changes
