"""The winner's curse: what the chosen trial is expected to come to on new images, by a bootstrap of the choice."""

import base64
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.winner import confirmed, ranked
from cifar_sweep.words import percent

RESAMPLES = 1000
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What is to be expected on new images of the trial that validation accuracy chose. Accuracies are fractions."""

    accuracy: float
    low: float  # to `high`: the 95 % interval of what so many new images will show, by all images' sampling error
    high: float
    optimism: float  # how much the choice flatters the accuracy that is shown
    images: int  # of validation
    new_images: int

    @property
    def text(self) -> str:
        """All of it in words."""
        flatters = f"the choice flatters it by {percent(self.optimism)} points"
        interval = f"95 % interval {percent(self.low)} to {percent(self.high)} of {self.new_images:,} images"
        return f"expected on new images: {percent(self.accuracy)} % ({interval}; {flatters})"

    def described(self) -> dict[str, Any]:
        """All of it as plain data, with its `text`."""
        return asdict(self) | {"text": self.text}


def packed(correct: Sequence[int]) -> dict[str, Any] | None:
    """Which images are named rightly, 1 or 0 each, as plain data: bits in base64. None where nothing is known."""
    bits = base64.b64encode(np.packbits(np.array(correct, dtype=np.uint8)).tobytes()).decode()
    return {"images": len(correct), "bits": bits} if correct else None


def unpacked(stored: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The ones and zeros that `packed` was given."""
    return np.unpackbits(np.frombuffer(base64.b64decode(stored["bits"]), dtype=np.uint8), count=stored["images"])


def expected(trials: Sequence[TrialRecord], *, new_images: int) -> Expected | None:
    """What to expect of the best trial on so many new images; None where not all that competed stored what they name,
    or accuracy did not choose.

    The choice is repeated on resamples of the validation images, of a confirmation the choice among its candidates.
    """
    won = confirmed(trials)
    there = {trial.number: trial for trial in ranked(trials)}
    groups = [each.seeds for each in won if each.steady] or [[k] for k, each in there.items() if each.confirms is None]
    members = [[there[k].correct for k in group if k in there] for group in groups]
    stored = [each for group in members for each in group]
    if any(trial.metric.field != "validation_accuracy" for trial in there.values()):
        return None  # it is not the accuracy on these images that has chosen
    if not stored or any(each is None for each in stored) or len({each["images"] for each in stored if each}) > 1:
        return None
    rows = np.array([unpacked(each) for each in stored if each], dtype=np.float32)
    sizes = [len(group) for group in members]
    return judged(rows, lambda accuracies: _choice(accuracies, sizes), new_images=new_images)


def _choice(accuracies: Rows, sizes: Sequence[int]) -> npt.NDArray[np.intp]:
    """For each resample [n, trials] the best trial of the group of the best mean."""
    starts = np.cumsum([0, *sizes[:-1]])
    best = (np.add.reduceat(accuracies, starts, axis=1) / np.array(sizes)).argmax(axis=1)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    chosen: npt.NDArray[np.intp] = np.where(group_of == best[:, None], accuracies, -1.0).argmax(axis=1)
    return chosen


def judged(
    correct: Rows, choose: Callable[[Rows], npt.NDArray[np.intp]], *, new_images: int, resamples: int = RESAMPLES
) -> Expected:
    """The expected accuracy of the trial that `choose` takes.

    On each bootstrap resample of the images the trial is chosen anew; how much better it is there than on all images
    is how much such a choice flatters (Efron, Estimating the error rate of a prediction rule, 1983). That is too
    little: a resample has noise of its own on top of the images' own, so that only a part of a choice follows it. Of
    trials that are equally good it is one over the root of two, and the estimate is made larger by that, which is
    exact there, and measured for real trials in docs/search.md.

    Args:
        correct: 1 where a trial names an image rightly, else 0: [trials, images].
        choose: from accuracies [n, trials] the chosen trial of each of the n.
        new_images: how many new images the interval is for.
        resamples: how often the choice is repeated.
    """
    images, generator = correct.shape[1], np.random.default_rng(0)
    drawn = generator.integers(images, size=(resamples, images))
    counts = np.array([np.bincount(each, minlength=images) for each in drawn], dtype=np.float32)
    inside = counts @ correct.T / images
    shown, chosen = correct.mean(axis=1), choose(inside)
    flattered = float((inside[np.arange(resamples), chosen] - shown[chosen]).mean())
    optimism = math.sqrt(2) * max(flattered, 0.0)
    accuracy = float(shown[choose(shown[None])[0]]) - optimism
    accuracy = max(accuracy, 0.0)
    # Two more images named rightly and two wrongly (Agresti and Coull, 1998): none of 36 wrong is no proof of none.
    wider = (images * accuracy + 2) / (images + 4)
    half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt(wider * (1 - wider) * (1 / images + 1 / new_images))
    return Expected(accuracy, max(0.0, accuracy - half), min(1.0, accuracy + half), optimism, images, new_images)
