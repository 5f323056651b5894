"""What the parts of a sweep cost on a machine, as plain data, and how far that was found to be off.

Costs are reckoned from timed steps before a sweep runs, and are stored with its study, so that whoever looks at it can
say how long it will still take. What has been trained since corrects them.
"""

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cifar_sweep.study.study import SweepStudy

TRAIN_IMAGES = 40_000
# Of the training images, as the split has it.
VALIDATION_SHARE = 0.25
VALIDATION_BATCH = 200
# Of a training step's time: mostly 0.25 to 0.5 over all networks, noisily measured on 2 cores.
FORWARD_SHARE = 0.35
# Where nothing else is known: a quiet machine of 2 cores, with SQLite and files on a local disk.
START_SECONDS = 6.0
TRIAL_SECONDS = 0.15
REPORT_SECONDS = 0.015
FLAT_SECONDS = 1e-3
# From the last trial's end to the command's.
END_SECONDS = 1.0


class Kind(NamedTuple):
    """What decides how long a trial takes. `train_images` 0 is all of them."""

    network: str
    batch_size: int
    epochs: int
    train_images: int


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The kind of a trial with this config, or shape, as plain data."""
    network = str(config["model"]) + ("+batch_norm" if config["batch_norm"] else "")
    return Kind(network, int(config["batch_size"]), int(config["epochs"]), int(config["train_images"]))


class NetworkCosts(BaseModel):
    """Of one network: seconds of a member of a group for an `image` and for a `step`, both by the group's size.

    `sizes` is how many trials train at once, by batch size; `checkpoint` the seconds to keep a member's checkpoint.
    """

    model_config = ConfigDict(frozen=True)
    image: dict[int, float]
    step: dict[int, float]
    sizes: dict[int, int]
    checkpoint: float = Field(default=0.01, ge=0)


class Costs(BaseModel):
    """Wall seconds of a worker while all are at work, by networks as `Kind` names them.

    Attributes:
        networks: what was timed; any other network takes `FLAT_SECONDS` an image, to be corrected by what is found.
        workers: how many there are to be.
        fixed: whether the size of groups was asked for, and is not limited by what has finished.
        largest: the size of a group of a network that is not in `networks`.
        train_images: of the data.
        start: from the command to the first epoch.
        trial: to claim, build and complete a trial, besides its epochs.
        report: to report a trial's epoch.
    """

    model_config = ConfigDict(frozen=True)
    networks: dict[str, NetworkCosts] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1)
    fixed: bool = False
    largest: int = Field(default=1, ge=1)
    train_images: int = Field(default=TRAIN_IMAGES, ge=1)
    start: float = Field(default=START_SECONDS, ge=0)
    trial: float = Field(default=TRIAL_SECONDS, ge=0)
    report: float = Field(default=REPORT_SECONDS, ge=0)

    def size(self, kind: Kind) -> int:
        """How many trials of this kind train at once."""
        known = self.networks.get(kind.network)
        if known is None:
            return self.largest
        nearest = min(known.sizes, key=lambda batch: abs(math.log(batch / kind.batch_size)))
        return known.sizes[nearest]

    def epoch(self, kind: Kind, members: int) -> float:
        """Seconds of a group's epoch: its training and its validation."""
        images = kind.train_images or self.train_images
        validated = VALIDATION_SHARE * self.train_images * FORWARD_SHARE
        training = images * self.per_image(kind.network, kind.batch_size, members)
        return members * (training + validated * self.per_image(kind.network, VALIDATION_BATCH, members))

    def between(self, kind: Kind, members: int) -> float:
        """Seconds after a group's epoch: checkpoints and reports."""
        known = self.networks.get(kind.network)
        return members * (self.report + (known.checkpoint if known else 0.0))

    def whole(self, kind: Kind) -> float:
        """Seconds of a trial that is trained alone to its end."""
        return self.trial + kind.epochs * (self.epoch(kind, 1) + self.between(kind, 1))

    def per_image(self, network: str, batch: int, size: int) -> float:
        """Seconds of a member; between two sizes that were timed, in proportion."""
        known = self.networks.get(network)
        if known is None:
            return FLAT_SECONDS
        below = max((timed for timed in known.image if timed <= size), default=min(known.image))
        above = min((timed for timed in known.image if timed >= size), default=max(known.image))
        share = (size - below) / (above - below) if above > below else 0.0
        low, high = (known.image[timed] + known.step[timed] / batch for timed in (below, above))
        return low + share * (high - low)


@dataclass(frozen=True)
class Found:
    """How long epochs took in truth: the logarithm of that over the costs' word. `weight` 1 is about one group's."""

    network: str
    batch_size: int
    log_ratio: float
    weight: float


@dataclass(frozen=True)
class Pace:
    """Costs, corrected by what was found, and how sure that is.

    A batch size of a network is off as far as what was found of it, drawn towards what was found of all. What nothing
    was found of is off like some other.

    Attributes:
        costs: to be corrected.
        found: what epochs took.
        overhead: how many times as long as in `costs` that takes which is no epoch.
        doubt: deviation of a logarithm: how far costs are off before anything is found.
    """

    costs: Costs
    found: Sequence[Found] = ()
    overhead: float = 1.0
    doubt: float = 0.15

    def drawn(self, generator: random.Random) -> "Drawn":
        """A pace that may be the true one."""
        weight = self._weight
        # Part of it does not average out: a machine is busy for a while, and other trials than these are to come.
        common = generator.gauss(0.0, self._within * math.sqrt(0.4 + 1 / (1 + weight)))
        return Drawn(self, generator, common)

    def usual(self) -> "Drawn":
        """The most likely pace."""
        return Drawn(self, None, 0.0)

    def off(self, network: str, batch_size: int) -> tuple[float, float]:
        """How far off the costs of this batch size probably are: mean and deviation of a logarithm."""
        weight, mean = self._classes.get((network, batch_size), (0.0, 0.0))
        drawn = self._pull
        return (weight * mean + drawn * self._mean) / (weight + drawn), self._between / math.sqrt(1 + weight / drawn)

    @cached_property
    def _weight(self) -> float:
        return math.fsum(each.weight for each in self.found)

    @cached_property
    def _classes(self) -> dict[tuple[str, int], tuple[float, float]]:
        """The weight and the mean of what was found, by network and batch size."""
        classes: dict[tuple[str, int], list[Found]] = defaultdict(list)
        for each in self.found:
            classes[each.network, each.batch_size].append(each)
        return {key: _mean(group) for key, group in classes.items()}

    @cached_property
    def _mean(self) -> float:
        """Of all; the costs' own word counts, too, where they were timed, by how sure it is."""
        weight, mean = _mean(self.found)
        own = (self._within / self.doubt) ** 2 if self.costs.networks and self.doubt else 0.0
        return weight * mean / (weight + own) if weight else 0.0

    @cached_property
    def _pull(self) -> float:
        """How many groups of a batch size count like what is known of all of them."""
        return max((self._within / self._between) ** 2, 0.05) if self._between else 1.0

    @cached_property
    def _between(self) -> float:
        """The deviation between batch sizes, networks."""
        means = [mean for _, mean in self._classes.values()]
        prior = self.doubt if self.costs.networks else 0.5
        spread = statistics.pvariance(means) if len(means) > 1 else 0.0
        return math.sqrt((prior**2 + len(means) * spread) / (1 + len(means)))

    @cached_property
    def _within(self) -> float:
        """The deviation of one group from the others of its batch size."""
        squares = math.fsum(
            each.weight * (each.log_ratio - self._classes[each.network, each.batch_size][1]) ** 2 for each in self.found
        )
        return math.sqrt((self.doubt**2 + squares) / (1 + self._weight))


def _mean(found: Sequence[Found]) -> tuple[float, float]:
    weight = math.fsum(each.weight for each in found)
    return weight, math.fsum(each.weight * each.log_ratio for each in found) / weight if weight else 0.0


@dataclass
class Drawn:
    """One pace of many that may be; without a generator, the most likely one."""

    pace: Pace
    generator: random.Random | None
    common: float
    _factors: dict[tuple[str, int], float] = field(default_factory=dict)
    _epochs: dict[tuple[Kind, int], float] = field(default_factory=dict)

    @property
    def is_drawn(self) -> bool:
        """Whether it is one of many; else all is certain."""
        return self.generator is not None and self.pace.doubt > 0

    def epoch(self, kind: Kind, members: int) -> float:
        """Wall seconds of a group's epoch, with all that follows it."""
        known = self._epochs.get((kind, members))
        if known is None:
            costs = self.pace.costs
            known = self._factor(kind) * costs.epoch(kind, members) + self.pace.overhead * costs.between(kind, members)
            self._epochs[kind, members] = known
        return known

    def begin(self, members: int) -> float:
        """Wall seconds of so many trials besides their epochs."""
        return self.pace.overhead * self.pace.costs.trial * members

    def _factor(self, kind: Kind) -> float:
        key = kind.network, kind.batch_size
        if key not in self._factors:
            mean, deviation = self.pace.off(*key)
            own = self.generator.gauss(0.0, deviation) if self.generator else 0.0
            self._factors[key] = math.exp(mean + own + self.common)
        return self._factors[key]


def noted_costs(study: SweepStudy) -> Costs | None:
    """What a study's parts were reckoned to cost where it was started; None where nobody did."""
    return Costs.model_validate(study.costs) if study.costs else None


def note_costs(study: SweepStudy, costs: Costs) -> None:
    """Store with a study what its parts are reckoned to cost."""
    study.note_costs(costs.model_dump(mode="json"))
