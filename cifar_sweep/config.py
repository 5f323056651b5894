"""What one trial trains, as frozen data. Standard library only: both columns of the project import it."""

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal

from cifar_sweep.errors import UsageError, nearest
from cifar_sweep.layers import image_fault
from cifar_sweep.parameters import (
    BY_LAYER,
    NAMES,
    OWN,
    PARAMETERS,
    SMALLEST_SIDE,
    Value,
    applies,
    base_of,
    check_parameter,
    defaults_beside,
    layer_counts,
    traits,
)

DEFAULT_STORAGE = "sqlite:///studies.db"
More = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Shape:
    """Everything that changes a tensor's size or the stream of batches. Trials of equal shapes can form one group.

    `classes` is the data's; `data_seed` orders the batches; `precision` is resolved (fp32 or bf16), never auto;
    `train_images` 0 means all of the training part, `validation_images` 0 all of the validation part.
    """

    model: str
    classes: int
    activation: str
    batch_norm: bool
    norm_position: str
    hidden_units: int
    padding_mode: Literal["zeros", "reflect"]
    init: str
    softmax: bool
    normalize: bool
    optimizer: str
    batch_size: int
    epochs: int
    train_images: int
    data_seed: int
    precision: str
    validation_images: int = 0
    image_size: int = 32
    input_size: int = 0
    metric: str = "accuracy"
    conv_layers: int = 3
    convs_per_block: int = 1
    filters: int | str = 32
    filter_growth: str = "same"
    kernel_size: int | str = 3
    stride: int | str = 1
    padding: str = "same"
    pooling: str = "max"
    pool_size: int | str = 2
    global_pooling: bool = False
    dense_layers: int = 1
    dense_units: int | str = 128
    dense_batch_norm: bool = False
    dense_activation: str = "as_activation"
    input_dropout: float = 0.0
    pretrained: bool = False
    weights_file: str = "none"
    freeze: int = 0
    head_layers: int = 0
    head_units: int = 256
    amsgrad: bool = False
    loss: str = "cross_entropy"
    class_weights: str = "none"
    batch_norm_momentum: float = 0.1
    augmentation: str = "none"
    flip: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    color: float = 0.0
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    more: More = ()  # those of single layers and of a user's own network, by name

    @property
    def values(self) -> dict[str, Any]:
        """All its values by name, those of single layers among them."""
        return vars(self) | dict(self.more)

    @property
    def own(self) -> dict[str, Value]:
        """The parameters of a user's own network, as its function calls them."""
        return {name.removeprefix(OWN): value for name, value in self.more if name.startswith(OWN)}

    @property
    def seen(self) -> "Shape":
        """The same for images as the network sees them."""
        return replace(self, image_size=self.input_size, input_size=0) if self.input_size else self

    @property
    def own_file(self) -> str:
        """What of it is a user's own, as the fingerprints of a study name it: the file of its weights, or its model."""
        return self.model if self.weights_file == "none" else self.weights_file

    @property
    def fault(self) -> str:
        """Why there is no such network, in words; empty where there is one."""
        if self.input_size and not SMALLEST_SIDE <= self.input_size <= self.image_size:
            accepted = f"from {SMALLEST_SIDE} to the images' {self.image_size}, or 0"
            return f"input_size = {self.input_size} is not accepted; it takes a whole number {accepted}"
        fault = image_fault(self.seen.values)
        return fault.replace("image_size", "input_size") if self.input_size else fault


@dataclass(frozen=True)
class Knobs:
    """The plain numbers of one trial. `seed` decides its initial weights and its dropout masks."""

    learning_rate: float
    momentum: float
    weight_decay: float
    dropout: float
    step_size: int
    gamma: float
    seed: int
    head_rate: float = 0.0
    bias_rate: float = 1.0
    freeze_epochs: int = 0
    asgd_decay: float = 1e-4
    asgd_power: float = 0.75
    cycle_up: int = 10
    cycle_down: int = 0
    cycle_mode: str = "triangular"
    conv_dropout: float | str = 0.0
    dropout_place: str = "dense"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 0.0
    alpha: float = 0.99
    rho: float = 0.9
    dampening: float = 0.0
    schedule: str = "step"
    warmup_epochs: int = 0
    milestones: int | str = 0
    cosine_epochs: int = 0
    restart_epochs: int = 10
    restart_factor: int = 1
    lowest_rate: float = 0.0
    onecycle_peak: float = 0.3
    onecycle_start: float = 25.0
    onecycle_end: float = 1e4
    polynomial_power: float = 1.0
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    l1: float = 0.0
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    repeat: int = 0
    more: More = ()  # those of single layers, by name

    def rate(self, place: str) -> float:
        """The rate of dropout at a place: one of the whole network, or of a layer as in ``conv_dropout_2``."""
        own, name = dict(self.more), base_of(place)
        if place in own:
            return float(own[place])
        if entries := PARAMETERS[name].entries(getattr(self, name)):
            return float(entries[int(place.removeprefix(f"{name}_")) - 1])
        if name == "conv_dropout" and not self.conv_dropout:
            return self.dropout if self.dropout_place in ("conv", "both") else 0.0
        if name == "dropout" != place and self.dropout_place == "conv":
            return 0.0
        return float(getattr(self, name))


# Of single layers: which part of a config has them.
_PARTS = {part: {field.name for field in fields(part)} for part in (Shape, Knobs)}
_KNOWN = dict.fromkeys(field.name for part in _PARTS for field in fields(part) if field.name != "more")  # in order
# A value that came later is left out of what is stored while it is the default: what was stored before stays the same.
_LATER = {
    field.name: field.default
    for part in (Shape, Knobs)
    for field in fields(part)
    if field.default is not MISSING and field.name not in ("validation_images", "image_size")
}
_USUAL: dict[str, Value] = {name: PARAMETERS[name].default for name in NAMES}


@dataclass(frozen=True)
class TrialConfig:
    """One trial, complete: nothing about it is decided later."""

    shape: Shape
    knobs: Knobs

    @classmethod
    def from_params(
        cls, params: Mapping[str, Value], *, classes: int, precision: str, data_seed: int, seed: int
    ) -> "TrialConfig":
        """Complete `params` with the defaults of their model.

        A parameter that the model or the optimizer does not have (dropout's place in the space of a sweep over
        several models, say) falls back to its default, so that equal networks get equal configs. `precision`, fp32 or
        bf16, stands where `params` says ``auto`` or nothing. Raises UsageError for what is unknown or out of range.
        """
        given = {name: check_parameter(name, value, where="trial parameters") for name, value in params.items()}
        has, defaults = traits(str(given.get("model", PARAMETERS["model"].default)))
        values: dict[str, Value] = _USUAL | defaults | defaults_beside(_USUAL | given)
        complete = values | given | layer_counts(given)
        values |= {name: value for name, value in given.items() if applies(name, complete)}
        if "conv_layers" in has:
            values |= {name: complete[name] for name in BY_LAYER.values()}
        if "hidden_units" not in has:
            values["hidden_units"] = 0
        if values["precision"] == "auto":
            values["precision"] = precision
        values |= {"classes": classes, "data_seed": data_seed, "seed": seed}
        return cls._of(values)  # each is a default, or checked above

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """Rebuild a config from `to_dict`'s result; UsageError if a value is missing, unknown, or out of range."""
        # What was stored before there was a choice.
        values = _LATER | {"validation_images": 0, "image_size": 32} | dict(values)
        del values["more"]
        if unknown := [name for name in values if name not in _KNOWN and not _is_further(name)]:
            raise UsageError(f"trial config: there is no value {unknown[0]!r}; {nearest(unknown[0], _KNOWN)}.")
        if missing := [name for name in _KNOWN if name not in values]:
            raise UsageError(f"trial config: {', '.join(missing)} is missing; a config has all of {', '.join(_KNOWN)}.")
        for name, value in values.items():
            if name in PARAMETERS and not (name == "hidden_units" and value == 0):
                check_parameter(name, value, where="trial config")
        return cls._of(values)

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """The config of these values, of which all are there; UsageError for a number that is no parameter."""
        for name, least in (("classes", 2), ("data_seed", 0), ("seed", 0)):
            if type(values[name]) is not int or values[name] < least:
                fault = f"{name} = {values[name]!r}"
                raise UsageError(f"trial config: {fault} is not accepted; a whole number from {least}.")
        further = sorted((name, value) for name, value in values.items() if name not in _KNOWN)

        def part(kind: type[Shape] | type[Knobs]) -> Any:
            more = ((name, value) for name, value in further if _is_of(kind, name))
            return kind(**{name: values[name] for name in _PARTS[kind] - {"more"}}, more=tuple(more))

        return cls(part(Shape), part(Knobs))

    def to_dict(self) -> dict[str, Value]:
        """All values, flat, as plain data; those that came later only where they are not the default."""
        values = self.complete().items()
        return {name: value for name, value in values if name not in _LATER or value != _LATER[name]}

    def complete(self) -> dict[str, Value]:
        """All values, flat, the defaults among them: for those who ask for a value by its name."""
        values = asdict(self.shape) | asdict(self.knobs)
        del values["more"]
        return values | dict(self.shape.more) | dict(self.knobs.more)


def _is_further(name: str) -> bool:
    """Whether a parameter is of a single layer, or of a user's own network."""
    return name not in _USUAL and name in PARAMETERS


def _is_of(part: type[Shape] | type[Knobs], name: str) -> bool:
    return base_of(name) in _PARTS[part] or (part is Shape and name.startswith(OWN))


def decides_shape(name: str, *values: Any) -> bool:
    """Whether trials that differ in this parameter, which has such values, cannot train as one."""
    if name not in PARAMETERS:
        return False
    # A list of rates of dropout says how many layers there are.
    return _is_of(Shape, name) or (name in BY_LAYER and any(PARAMETERS[name].entries(value) for value in values))


def derive_seed(*path: int | str) -> int:
    """A seed of 32 bits for a place in the sweep, such as ``derive_seed(sweep_seed, "trial", 7)``.

    A hash, not a sum: neighbouring seeds and numbers give unrelated streams, on every machine the same.
    """
    digest = hashlib.sha256(":".join(str(part) for part in path).encode()).digest()
    return int.from_bytes(digest[:4], "big")
