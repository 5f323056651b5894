"""What the parts of a sweep cost on a machine, as plain data.

Costs are reckoned from timed steps before a sweep runs and are stored with its study, so that everybody who looks at
the study can say how long it will still take.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cifar_sweep.config import Shape
from cifar_sweep.layers import blocks_of, macs_of
from cifar_sweep.training_parameters import CHANGES

if TYPE_CHECKING:
    from cifar_sweep.study.record import TrialRecord
    from cifar_sweep.study.study import SweepStudy

TRAIN_IMAGES = 40_000
# Of the training images, as the split has it.
VALIDATION_SHARE = 0.25
VALIDATION_BATCH = 200
# Of a training step's time: mostly 0.25 to 0.5 over all networks, noisily measured on 2 cores.
FORWARD_SHARE = 0.35
# Where nothing else is known: a quiet machine of 2 cores, with SQLite and files on a local disk.
START_SECONDS = 6.0
OPEN_SECONDS = 1.0
TRIAL_SECONDS = 0.08
REPORT_SECONDS = 0.003
CHECKPOINT_SECONDS = 0.003
FLAT_SECONDS = 1e-3
# From the last trial's end to the command's.
END_SECONDS = 1.0
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Speed(NamedTuple):
    """Training time of one member of a group: `image` seconds for each image and `step` seconds for each batch."""

    image: _Seconds
    step: _Seconds

    def per_image(self, batch: int) -> float:
        """Seconds per training image at this batch size."""
        return self.image + self.step / batch


def per_image(timed: Mapping[int, Speed], batch: int, size: int) -> float:
    """Seconds per image of a member of a group of this size; between two timed sizes they are in proportion."""
    below = max((each for each in timed if each <= size), default=min(timed))
    above = min((each for each in timed if each >= size), default=max(timed))
    share = (size - below) / (above - below) if above > below else 0.0
    low, high = timed[below].per_image(batch), timed[above].per_image(batch)
    return low + share * (high - low)


class NetworkCosts(BaseModel):
    """Costs of one network, in seconds."""

    model_config = ConfigDict(frozen=True)
    image: dict[int, float]  # of a member of a group for each image, by the group's size
    step: dict[int, float]  # of a member for each batch, likewise
    sizes: dict[int, int]  # how many trials train at once, by batch size
    checkpoint: float = Field(default=CHECKPOINT_SECONDS, ge=0)  # to keep a member's checkpoint

    def per_image(self, batch: int, size: int) -> float:
        """Seconds per image of a member of a group of this size."""
        return per_image({timed: Speed(self.image[timed], self.step[timed]) for timed in self.image}, batch, size)


class Costs(BaseModel):
    """Wall seconds of a worker while all workers are at work."""

    model_config = ConfigDict(frozen=True)
    # By `network_name`. A cnn that is not there takes those of the next in size, others take `FLAT_SECONDS`.
    networks: dict[str, NetworkCosts] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1)  # how many there are to be
    devices: int = Field(default=1, ge=1)  # how many these have among them
    changes: dict[str, float] = Field(default_factory=dict)  # of an image for a whole group, by `change_name`
    fixed: bool = False  # whether the size of groups was asked for, and is not limited by what has finished
    rough: bool = False  # whether nothing was timed here, so that the costs may be off by a factor of two
    largest: int = Field(default=1, ge=1)  # the size of a group of a network that is not in `networks`
    train_images: int = Field(default=TRAIN_IMAGES, ge=1)  # of the data
    start: float = Field(default=START_SECONDS, ge=0)  # from the command to the first epoch
    trial: float = Field(default=TRIAL_SECONDS, ge=0)  # to claim, build and complete a trial, besides its epochs
    report: float = Field(default=REPORT_SECONDS, ge=0)  # to report a trial's epoch

    def size(self, shape: Shape) -> int:
        """How many trials of this shape train at once."""
        known = self.networks.get(network_name(shape))
        if known is None:
            return self.largest
        return known.sizes[min(known.sizes, key=lambda batch: abs(math.log(batch / shape.batch_size)))]

    def _nearest(self, shape: Shape) -> tuple[NetworkCosts | None, float]:
        """What is known of its network, and how many times as long it takes: of a cnn the next in size may be."""
        name = network_name(shape)
        found = CNN.fullmatch(name)
        cnns = [each for each in map(CNN.fullmatch, self.networks) if each]
        if name in self.networks or not found or not cnns:
            return self.networks.get(name), 1.0
        nearest = min(
            cnns, key=lambda each: (each["kind"] != found["kind"], abs(int(each["size"]) - int(found["size"])))
        )
        return self.networks[nearest[0]], 2 ** ((int(found["size"]) - int(nearest["size"])) / 2)

    def epoch(self, shape: Shape, members: int) -> float:
        """Seconds of a group's epoch: its training and its validation."""
        known, times = self._nearest(shape)
        batches = shape.batch_size, VALIDATION_BATCH
        image, looked_at = (times * known.per_image(batch, members) if known else FLAT_SECONDS for batch in batches)
        images = shape.train_images or self.train_images
        validated = shape.validation_images or VALIDATION_SHARE * self.train_images
        changed = images * self.changes.get(change_name(shape), 0.0)
        return members * (images * image + validated * FORWARD_SHARE * looked_at) + changed

    def between(self, shape: Shape, members: int) -> float:
        """Seconds after a group's epoch: checkpoints and reports."""
        known = self.networks.get(network_name(shape))
        return members * (self.report + (known.checkpoint if known else 0.0))

    def alone(self, shape: Shape) -> float:
        """Seconds of a trial that is trained alone to its end."""
        return self.trial + shape.epochs * (self.epoch(shape, 1) + self.between(shape, 1))


def network_name(shape: Shape) -> str:
    """What costs call the network of this shape: one by numbers by how large it is."""
    if shape.model == "cnn":
        return magnitude(shape)
    if shape.own:
        return f"{shape.model}?{json.dumps(shape.own, separators=(',', ':'))}".replace(" ", r"\u0020")
    return shape.model + ("+batch_norm" if shape.batch_norm else "")


# A cnn by its `magnitude`: what kind it is of, and half the factors of two in its multiply-accumulates.
CNN = re.compile(r"(?P<kind>cnn(?:\+batch_norm)?~+)(?P<size>\d+)")
PLAIN = ("relu", "leaky_relu")  # activations that compiled kernels know


def magnitude(shape: Shape) -> str:
    """A cnn by its multiply-accumulates, in steps of half a factor of two, and by whether compiled kernels know it."""
    shape = shape.seen
    blocks = blocks_of(shape.values)
    usual = all((block.stride, block.pooling, block.pool_size) == (1, "max", 2) for block in blocks)
    kind = "~" if usual and shape.activation in PLAIN else "~~"
    norm = "+batch_norm" if any(block.batch_norm for block in blocks) else ""
    return f"cnn{norm}{kind}{round(2 * math.log2(max(macs_of(shape.values), 1)))}"


CHANGED = "images: "
_SETTINGS = (
    "augmentation",
    "mix_probability",
    "randaugment_operations",
    "randaugment_magnitude",
)  # no change by themselves
# Changes that take about as long as another one.
_TIMED_AS = {"vertical_flip": "flip", **dict.fromkeys(("brightness", "contrast", "saturation"), "color")}


def change_name(shape: Shape) -> str:
    """What is done to training images, by what it costs: ``images: crop+rotation 64px``; empty where it is nothing."""
    named = [shape.augmentation] if shape.augmentation != "none" else []
    named += [_TIMED_AS.get(name, name) for name in CHANGES if name not in _SETTINGS and getattr(shape, name)]
    named = list(dict.fromkeys(named))
    size = "" if shape.image_size == 32 else f" {shape.image_size}px"
    return f"{CHANGED}{'+'.join(named)}{size}" if named else ""


@dataclass(frozen=True)
class Pace:
    """Costs, corrected by one factor."""

    costs: Costs  # as they were reckoned
    factor: float = 1.0  # how many times as long everything takes in truth
    doubt: float = 0.15  # how sure the factor is, as the standard deviation of its logarithm
    _epochs: dict[tuple[Shape, int], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def epoch(self, shape: Shape, members: int) -> float:
        """Wall seconds of a group's epoch, with its checkpoints and reports."""
        if (shape, members) not in self._epochs:
            seconds = self.costs.epoch(shape, members) + self.costs.between(shape, members)
            self._epochs[shape, members] = self.factor * seconds
        return self._epochs[shape, members]


def noted_costs(study: "SweepStudy") -> Costs | None:
    """What a study's parts were reckoned to cost where it was started; None where nobody did."""
    try:
        return Costs.model_validate(study.costs) if study.costs else None
    except ValidationError:  # not as we wrote it
        return None


def epoch_seconds(study: "SweepStudy", trials: "Sequence[TrialRecord]") -> float | None:
    """About how long an epoch of a trial that has begun takes; None where nobody has reckoned it."""
    shapes = [trial.config.shape for trial in trials if trial.config]
    costs = noted_costs(study)
    return costs.epoch(shapes[0], 1) if costs and shapes and network_name(shapes[0]) in costs.networks else None


def note_costs(study: "SweepStudy", costs: Costs) -> None:
    """Store with a study what its parts are reckoned to cost, on its own images."""
    images = images_of(study, usual=costs.train_images)
    study.note_costs(costs.model_copy(update={"train_images": images}).model_dump(mode="json"))


def images_of(study: "SweepStudy", *, usual: int = TRAIN_IMAGES) -> int:
    """How many images there are to train on, as far as the study says it."""
    return int(study.data.get("train_images", usual))
