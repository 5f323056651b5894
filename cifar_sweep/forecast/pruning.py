"""What share of its epochs a trial is expected to be trained for, before its pruner has decided."""

import math
import random
from bisect import insort
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise

from cifar_sweep.search.choice import grant_end
from cifar_sweep.sweep.file import longest
from cifar_sweep.sweep.strategy import step_of
from cifar_sweep.sweep.sweep import PrunerSettings, Sweep

# Of the trials that the pruner let pass once, the share that is ended later: a guess.
_ENDED_LATER = 0.2
# Of the trials that strategy auto has trained to the end of a grant, the share that it gives up there: a guess, between
# what it does with 16 trials and with 60 (docs/search.md).
_GIVEN_UP = 0.4
# So many trials are drawn: as they become more, the share that passes changes no more.
_TRIALS = 2000


def startup(sweep: Sweep) -> int:
    """How many trials must be complete before any is pruned."""
    return sweep.pruner.startup_trials if sweep.pruner.name in ("median", "percentile") else 0


def looks(sweep: Sweep, epochs: int) -> list[int]:
    """The epochs after which the pruner may end a trial of so many; never the last one."""
    pruner, searched = sweep.pruner, "epochs" in sweep.space
    if pruner.name == "none":
        return []
    if pruner.name == "auto":
        return [epoch for epoch in range(1, epochs) if grant_end(epoch - 1, epochs) == epoch]
    steps = {epoch: step_of(epoch, epochs=epochs, searched=searched) for epoch in range(1, epochs)}
    if pruner.name in ("median", "percentile"):
        return [epoch for epoch, step in steps.items() if step is not None and step > pruner.warmup_steps]
    rungs = [pruner.min_steps * pruner.reduction_factor**rung for rung in range(20)]
    return [epoch for epoch, step in steps.items() if step in rungs]


def never_prunes(sweep: Sweep) -> str:
    """Why the pruner can end no trial of the sweep, in one sentence; empty where it can, or there is none."""
    pruner, most = sweep.pruner, longest(sweep, "epochs")
    if pruner.name in ("none", "auto"):
        return ""
    if not looks(sweep, most):
        if not looks(sweep.model_copy(update={"pruner": PrunerSettings(name=pruner.name)}), most):
            return f"trials end after {most} epoch{'s' * (most != 1)}, before any could be compared; give them more"
        key = "warmup_steps" if pruner.name in ("median", "percentile") else "min_steps"
        first = f"it would look first after {key} = {getattr(pruner, key)}"
        return f"{first}, and trials end after {most} epochs; lower pruner.{key}"
    if startup(sweep) >= sweep.size:
        return f"it waits for {startup(sweep)} complete trials, and there are {sweep.size}; lower pruner.startup_trials"
    return ""


def expected_survival(sweep: Sweep, epochs: int) -> list[float]:
    """The share of trials that is still trained in each of so many epochs, if all trials are as good as each other.

    The median pruner ends half of them at its first look, the percentile pruner all but its percentile; the share of
    auto is a guess. Of asha and hyperband the share follows from how many trials there are (`_halving`).
    """
    pruner, ends = sweep.pruner, looks(sweep, epochs)
    if pruner.name in ("asha", "hyperband"):
        brackets = _brackets(pruner, longest(sweep, "epochs")) if pruner.name == "hyperband" else (1,)
        passed = _halving(len(ends), brackets, pruner.reduction_factor, min(sweep.size, _TRIALS))
    else:
        first = {"percentile": 1 - pruner.percentile / 100, "auto": _GIVEN_UP}.get(pruner.name, 0.5)
        of_all_later = 1 - (1 - _ENDED_LATER) ** (1 / max(len(ends) - 1, 1))
        later = of_all_later if pruner.name in ("median", "percentile") else first
        passed = [(1 - first) * (1 - later) ** look for look in range(len(ends))]
    spans = pairwise([0, *ends, epochs])
    return [share for share, span in zip([1.0, *passed], spans, strict=True) for _ in range(*span)]


def _brackets(pruner: PrunerSettings, epochs: int) -> tuple[int, ...]:
    """How the brackets of Hyperband share out the trials (optuna.pruners.HyperbandPruner)."""
    factor = pruner.reduction_factor
    last = math.floor(math.log(max(epochs / pruner.min_steps, 1.0), factor))
    return tuple(math.ceil((last + 1) * factor**rungs / (rungs + 1)) for rungs in range(last, -1, -1))


@lru_cache
def _halving(rungs: int, brackets: tuple[int, ...], factor: int, trials: int) -> list[float]:
    """The share of so many trials that passes each rung, where each is as good at every rung as at its first.

    Drawn, as it depends on who comes first: the n-th at a rung passes if it is one of the best max(1, n // factor)
    (optuna.pruners.SuccessiveHalvingPruner), so the first always does. A later bracket begins at a later rung.
    """
    generator, passed = random.Random(0), [0] * rungs  # noqa: S311 - no secret
    turns = math.ceil(_TRIALS / trials)
    for _ in range(turns):
        seen: dict[tuple[int, int], list[float]] = defaultdict(list)
        for bracket in generator.choices(range(len(brackets)), brackets, k=trials):
            value, rung = generator.random(), 0
            while rung < rungs:
                values = seen[bracket, rung]
                insort(values, value)
                if rung >= bracket and value < values[-max(1, len(values) // factor)]:
                    break
                passed[rung] += 1
                rung += 1
    return [count / turns / trials for count in passed]
