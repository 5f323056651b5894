"""When the pruner ends trials, before it is known: at which epochs it looks, and what share it may end there."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from cifar_sweep.forecast.costs import Kind
from cifar_sweep.sweep.strategy import step_of
from cifar_sweep.sweep.sweep import Sweep

# How many trials a guess before any result counts like.
_GUESSED_TRIALS = 4
# Of the trials that the pruner let pass once, the share that it ends later.
_ENDED_LATER = 0.2
# A trial whose loss is no longer a finite number ends with that epoch, mostly the first.
_DIVERGED = 0.02


@dataclass(frozen=True)
class Shares:
    """Of trials, as far as they were counted: ``(ended, passed)`` at the pruner's first look, later, and diverged.

    Where the pruner has rungs, later ones are counted for each rung.
    """

    first: tuple[float, float] = (0.0, 0.0)
    later: tuple[float, float] = (0.0, 0.0)
    diverged: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Fates:
    """What may become of a sweep's trials.

    Attributes:
        sweep: whose pruner it is.
        counted: what has become of those that are known.
        prunes: whether any trial ends early.
    """

    sweep: Sweep
    counted: Shares = Shares()
    prunes: bool = True
    _looks: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def without_pruner(self) -> "Fates":
        """The same, as if every trial were trained to its end."""
        return replace(self, prunes=False)

    @property
    def startup(self) -> int:
        """How many trials must be complete before any is pruned."""
        return 0 if self.has_rungs else self.sweep.pruner.startup_trials

    @property
    def has_rungs(self) -> bool:
        """Whether the pruner ends a share of the trials at each look, and not most of them at the first."""
        return self.sweep.pruner.name in ("asha", "hyperband")

    def looks(self, epochs: int) -> list[int]:
        """The epochs after which the pruner may end a trial of so many; never the last one."""
        if epochs not in self._looks:
            self._looks[epochs] = self._looks_at(epochs)
        return self._looks[epochs]

    def _looks_at(self, epochs: int) -> list[int]:
        pruner = self.sweep.pruner
        if not self.prunes or pruner.name == "none":
            return []
        searched = "epochs" in self.sweep.space
        steps = {epoch: step_of(epoch, epochs=epochs, searched=searched) for epoch in range(1, epochs)}
        reported = {epoch: step for epoch, step in steps.items() if step is not None}
        if not self.has_rungs:
            return [epoch for epoch, step in reported.items() if step > pruner.warmup_steps]
        rungs = list(takewhile(lambda rung: rung < epochs, self._rungs()))
        return [epoch for epoch, step in reported.items() if step in rungs]

    def drawn(self, generator: random.Random) -> "Fate":
        """Shares that may be the true ones."""
        if not self.prunes:
            return Fate(self, generator, 0.0, 0.0, 0.0)
        guess = self._guess()
        later = guess if self.has_rungs else _ENDED_LATER
        return Fate(
            self,
            generator,
            _beta(generator, guess, self.counted.first),
            _beta(generator, later, self.counted.later),
            _beta(generator, _DIVERGED, self.counted.diverged),
        )

    def _guess(self) -> float:
        """The share that is ended at the first look, if all trials are as good as each other."""
        pruner = self.sweep.pruner
        if pruner.name == "percentile":
            return 1 - pruner.percentile / 100
        if pruner.name == "asha":
            return 1 - 1 / pruner.reduction_factor
        return 0.5

    def _rungs(self) -> Sequence[int]:
        pruner = self.sweep.pruner
        return [pruner.min_steps * pruner.reduction_factor**rung for rung in range(20)]


@dataclass(frozen=True)
class Fate:
    """Shares, taken to be true: of the first look, of all later ones (of each rung), of trials that diverge."""

    fates: Fates
    generator: random.Random
    first: float
    later: float
    diverged: float

    def length(self, kind: Kind, looks: Sequence[int], *, done: int, active: float) -> int:
        """The epoch that a trial ends with; of its `looks` those count that lie before it, from epoch `active` on."""
        if done == 0 and self.generator.random() < self.diverged:
            return 1
        ahead = [epoch for epoch in looks if epoch > done and epoch >= active]
        if not ahead:
            return kind.epochs
        if not any(active <= epoch <= done for epoch in looks) and self.generator.random() < self.first:
            return ahead[0]
        if self.fates.has_rungs:
            return next((rung for rung in ahead[1:] if self.generator.random() < self.later), kind.epochs)
        if len(ahead) > 1 and self.generator.random() < self.later:
            return self.generator.choice(ahead[1:])
        return kind.epochs


def _beta(generator: random.Random, guess: float, counted: tuple[float, float]) -> float:
    ended, passed = counted
    return generator.betavariate(_GUESSED_TRIALS * guess + ended, _GUESSED_TRIALS * (1 - guess) + passed)
