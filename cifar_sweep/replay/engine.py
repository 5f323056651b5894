"""A search of a table: the product's own ask, report, freeze, prune and tell, without a tensor.

A worker claims trials from a study, "trains" them an epoch, and they are reported, pruned, frozen or told, all by the
code that a sweep runs; only the database is one in memory, and an epoch's result is the table's.
"""

from collections.abc import Sequence
from dataclasses import replace

from cifar_sweep.curve import EpochResult
from cifar_sweep.replay.table import Search, Table
from cifar_sweep.search.choice import Choice, Situation
from cifar_sweep.search.chooser import Chooser
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import MemoryStorage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.sweep import Sweep


class Replay:
    """One sweep on a table."""

    def __init__(self, table: Table, sweep: Sweep, *, seed: int) -> None:
        self.search = Search(table, seed)
        self.sweep = sweep.model_copy(update={"seed": seed})
        data = {"name": table.name, "fingerprint": "", "classes": table.classes}
        self.study: SweepStudy = open_or_resume(MemoryStorage(), "replay", self.sweep, data=data, artifacts="none")
        self.chooser = Chooser(self.sweep)
        self.is_cut = False  # whether a trial came to the end of a curve that was pruned
        self.trials: dict[int, int] = {}  # a trial's number in the search
        self.ahead: list[int] = []  # trials that were chosen and not claimed yet

    def run(self) -> Search:
        """Search until the sweep's trials are spent, one trial at a time."""
        while claims := self.claim(0):
            while claims := self.epoch(claims):
                pass
        return self.search

    def claim(self, worker: int, *, size: int = 1, workers: int = 1) -> list[Claim]:
        """The next group, of at most so many trials, for one of so many workers."""
        who = Worker(Owner("replay", 0, "", f"worker-{worker}"), "cpu", 1, "bf16")
        claims = self.study.claim(who, size=lambda _: size, workers=workers, choose=self._choose)
        for claim in claims:
            if claim.number not in self.trials:
                begun = self.ahead.pop(0) if self.ahead else self.search.begin(claim.config.complete())
                self.trials[claim.number] = begun
        return claims

    def _choose(self, now: Situation) -> Choice:
        """The chooser's choice, its new points moved to the settings that stand for them."""
        made = self.chooser.choose(now)
        self.ahead = [self.search.begin(self.sweep.fixed | dict(point)) for point in made.new]
        told = [self.search.params(number) for number in self.ahead]
        return replace(made, new=[{name: each[name] for name in self.sweep.space if name in each} for each in told])

    def epoch(self, claims: Sequence[Claim]) -> list[Claim]:
        """Train a group for an epoch. Returns those trials that go on, and ends or freezes the others."""
        for claim in claims:
            accuracy = self.search.epoch(self.trials[claim.number])
            rate = claim.config.knobs.learning_rate
            point = EpochResult(len(claim.curve) + 1, 0.0, 0.0, 0.0, accuracy, rate, 1.0)
            self.study.report(claim, [*claim.curve, point.to_dict()])
        # Only when all have reported: a pruner compares a trial with what it knows of the others.
        return [claim for claim in claims if self._goes_on(claim)]

    def _goes_on(self, claim: Claim) -> bool:
        done, epochs = len(claim.curve), claim.config.shape.epochs
        if self.search.is_cut(self.trials[claim.number]):
            self.study.prune(claim, "its curve ends here")
            self.is_cut = True
        elif done < epochs and self.study.should_prune(claim):
            self.study.prune(claim, "pruned")
        elif done < claim.until:
            return True
        elif done == epochs:
            self.study.complete(claim, max(point["validation_accuracy"] for point in claim.curve))
        else:
            self.study.release(claim)
        return False
