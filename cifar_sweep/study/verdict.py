"""Whether a study came to anything, in words."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.winner import ranked

if TYPE_CHECKING:
    from cifar_sweep.study.stored import StoredStudy


def verdict(study: "StoredStudy", trials: Sequence[TrialRecord]) -> str:
    """One sentence where no trial of a study that is over is worth taking away, with what to change; else empty.

    So it is where all have diverged, or none is better than guessing by a standard error of as many images.
    """
    finished = [trial for trial in trials if trial.state in ("complete", "pruned") and trial.confirms is None]
    if not finished or len(finished) < study.budget:
        return ""
    rates = [rate for trial in finished if isinstance(rate := trial.settings.get("learning_rate"), float)]
    ends = sorted({f"{rate:.3g}" for rate in (min(rates), max(rates))}, key=float) if rates else ["not known"]
    span = f"learning_rate was {' to '.join(ends)}"
    best = next(iter(ranked(trials)), None)
    if all(trial.diverged for trial in finished):
        words = "diverged: the loss was no longer a finite number; try lower learning rates, or less momentum"
        whole = f"all {len(finished)} trials" if len(finished) > 1 else "the one trial"
        return f"{whole} {words} and weight decay ({span})"
    guess, images = 1 / study.data["classes"], study.validation_images(finished[0]) or 1
    if best is None or best.accuracy is None or best.accuracy > guess + math.sqrt(guess * (1 - guess) / images):
        return ""
    lost = sum(trial.diverged for trial in finished)
    others = f"; {lost} of {len(finished)} diverged" if lost else ""
    words = f"no trial is better than guessing, {guess:.2%} of {study.data['classes']} classes{others}"
    return f"{words}; try other learning rates ({span}), more epochs, or another network"
