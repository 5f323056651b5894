"""A search in so many hours: what a study stores of it, and its best trials without the cuts."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.parameters import PARAMETERS, Value, applies

TIME_OVER = "the time was over"
# What is cut, in words.
CUT = {
    "epochs": "epochs", "step_size": "epochs between StepLR's decays", "warmup_epochs": "epochs of warm-up",
    "cosine_epochs": "epochs of half a cosine", "restart_epochs": "epochs until a restart",
    "plateau_patience": "epochs of patience", "cycle_up": "epochs up a cycle", "cycle_down": "epochs down a cycle",
    "freeze_epochs": "epochs of the last layer alone", "patience": "epochs without a better one",
    "train_images": "training images", "validation_images": "validation images",
}  # fmt: skip
IMAGES = ("train_images", "validation_images")
# How many of the best are trained again without the cuts, under how many seeds: as the time is, and more where some is
# left. Where not even one fits, it is trained for fewer epochs.
UNCUT = ((5, 3), (3, 3), (3, 2), (2, 2), (3, 1), (2, 1), (1, 1))
CUTS = tuple(0.9**k for k in range(60))  # the shares of a search that are tried
_SHARES = tuple(0.98**k for k in range(1, 200))  # of the end of one


@dataclass(frozen=True)
class Hours:
    """Until when a study may go on. Its own sweep is cut to that."""

    hours: float  # what was asked for
    asked: Mapping[str, Any]  # the identity of the sweep before it was cut
    reserve: float = 0.0  # seconds at the end that are left to the confirmation
    deadline: float | None = None  # in seconds since the epoch; None until a worker begins
    uncuts: bool = False  # whether the confirmation trains the best without the cuts

    def uncut(self, config: TrialConfig) -> dict[str, Value]:
        """What a trial would have been set to, had its sweep not been cut, as far as that is something else."""
        fixed, searched = self.asked.get("fixed", {}), self.asked.get("space", {})
        usual = {name: fixed.get(name, PARAMETERS[name].default) for name in CUT if name not in searched}
        now = config.complete()
        return {name: value for name, value in usual.items() if value != now[name] and applies(name, now)}

    def fitting(self, config: TrialConfig, images: int, fits: Callable[[Shape], bool]) -> dict[str, Value]:
        """The same, as long as there is time for: fewer epochs first, then, as short as it was, fewer of the `images`.

        Empty where there is no time for its own images. Of as many steps those on more images were the better ones
        (docs/search.md).
        """
        found, own = self.uncut(config), config.complete()
        tried = [found]

        def add(names: Iterable[str]) -> None:
            whole = tried[-1]
            for share in _SHARES:
                lengths = {name: int(whole[name]) or images for name in names}
                fewer = {name: max(round(share * length), int(own[name])) for name, length in lengths.items()}
                tried.append(whole | fewer)

        if "epochs" in found:
            add(found.keys() - set(IMAGES))
        if "train_images" in found:
            add(["train_images"])
        at = bisect_left(tried, True, key=lambda settings: fits(changed(config, settings).shape))
        return tried[at] if at < len(tried) else {}


def wider(confirm: tuple[int, int]) -> tuple[int, int] | None:
    """The next of `UNCUT` that has no fewer trials and no fewer seeds; None after the largest."""
    larger = (pair for pair in reversed(UNCUT) if pair[0] >= confirm[0] and pair[1] >= confirm[1])
    return next((pair for pair in larger if pair != confirm), None)


def changed(config: TrialConfig, settings: Mapping[str, Value]) -> TrialConfig:
    """The config with other values of some parameters."""
    return TrialConfig.from_dict(config.to_dict() | dict(settings))
