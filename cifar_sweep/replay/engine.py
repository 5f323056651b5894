"""A search of a table: the product's own ask, report, freeze, prune and tell, in simulated time, without a tensor.

Workers claim groups from a study, each group "trains" an epoch, its trials are reported, pruned, frozen or told, all by
the code that a sweep runs; only the database is one in memory, and an epoch's result is the table's.
"""

import heapq
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cifar_sweep.curve import EpochResult
from cifar_sweep.replay.table import Search, Speeds, Table
from cifar_sweep.search.choice import Choice, Situation
from cifar_sweep.search.chooser import Chooser
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import MemoryStorage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.sweep import Sweep

ENDLESS = 100_000  # trials: a replay ends by its epochs
EVEN = Speeds({1: {1: 1.0}})  # each epoch takes as long as any other


@dataclass(order=True)
class Group:
    """A group that a worker trains: when its next epoch ends."""

    at: float
    worker: int
    claims: list[Claim] = field(compare=False)
    done: int = field(compare=False, default=0)


class Replay:
    """One sweep on a table, by so many workers that train groups of at most so many trials.

    It ends when the epochs are spent, or when its choice is no further than `near` below the best of the table.
    """

    def __init__(
        self,
        table: Table,
        sweep: Sweep,
        *,
        seed: int,
        most_epochs: int,
        near: float = 0.0,
        workers: int = 1,
        group: int = 1,
        speeds: Speeds | None = None,
    ) -> None:
        self.search = Search(table, seed)
        self.sweep = sweep.model_copy(update={"seed": seed})
        data = {"name": table.name, "fingerprint": "", "classes": table.classes}
        self.study: SweepStudy = open_or_resume(MemoryStorage(), "replay", self.sweep, data=data, artifacts="none")
        self.chooser = Chooser(self.sweep)
        self.most_epochs, self.near, self.size, self.speeds = most_epochs, near, group, speeds or EVEN
        self.cut = 0  # trials that came to the end of a curve that was pruned
        self.curves: dict[int, list[dict[str, Any]]] = {}
        self.trials: dict[int, int] = {}  # a trial's number in the search
        self.ahead: list[int] = []  # trials that were chosen and not claimed yet
        owners = [Owner("replay", 0, "", f"worker-{worker}") for worker in range(workers)]
        self.workers = [Worker(owner, "cpu", 1, "bf16") for owner in owners]

    def run(self) -> Search:
        """Search until the end."""
        under_way: list[Group] = []
        idle = list(range(len(self.workers)))
        now = 0.0
        while not self.over():
            idle = [worker for worker in idle if not self._begin(worker, now, under_way)]
            if not under_way:
                break
            group = heapq.heappop(under_way)
            now = self.search.seconds = group.at
            self._epoch(group)
            if group.claims and group.done < group.claims[0].until:
                group.at += self._time(group)
                heapq.heappush(under_way, group)
            else:
                self._end(group)
                idle.append(group.worker)
        return self.search

    def over(self) -> bool:
        return self.search.spent >= self.most_epochs or self.search.short() <= self.near + 1e-9

    def _begin(self, worker: int, now: float, under_way: list[Group]) -> bool:
        claims = self.study.claim(
            self.workers[worker],
            size=lambda _: self.size,
            workers=len(self.workers),
            choose=self._choose,
        )
        if not claims:
            return False
        for claim in claims:
            if claim.number not in self.trials:
                begun = self.ahead.pop(0) if self.ahead else self.search.begin(claim.config.to_dict())
                self.trials[claim.number] = begun
                self.curves[claim.number] = []
        group = Group(now, worker, claims, done=len(claims[0].curve))
        group.at += self._time(group)
        heapq.heappush(under_way, group)
        return True

    def _choose(self, now: Situation) -> Choice:
        """The chooser's choice, its new points moved to the settings that stand for them."""
        made = self.chooser.choose(now)
        self.ahead = [self.search.begin(self.sweep.fixed | dict(point)) for point in made.new]
        told = [self.search.params(number) for number in self.ahead]
        return replace(made, new=[{name: each[name] for name in self.sweep.space if name in each} for each in told])

    def _time(self, group: Group) -> float:
        return self.speeds.epoch(group.claims[0].config.shape.batch_size, len(group.claims))

    def _epoch(self, group: Group) -> None:
        group.done += 1
        staying = []
        for claim in group.claims:
            accuracy = self.search.epoch(self.trials[claim.number])
            point = EpochResult(group.done, 0.0, 0.0, 0.0, accuracy, claim.config.knobs.learning_rate, 1.0)
            self.curves[claim.number].append(asdict(point))
            self.study.report(claim, self.curves[claim.number])
        for claim in group.claims:
            if self.search.is_cut(self.trials[claim.number]):
                self.study.prune(claim, "its curve ends here")
                self.cut += 1
            elif group.done < claim.config.shape.epochs and self.study.should_prune(claim):
                self.study.prune(claim, "pruned")
            else:
                staying.append(claim)
        group.claims = staying

    def _end(self, group: Group) -> None:
        for claim in group.claims:
            if group.done == claim.config.shape.epochs:
                self.study.complete(claim, max(point["validation_accuracy"] for point in claim.curve))
            else:
                self.study.release(claim)
