"""What one trial trains, as frozen data. Standard library only: both columns of the project import it."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cifar_sweep.errors import UsageError, nearest

Value = bool | int | float | str
DEFAULT_STORAGE = "sqlite:///studies.db"


@dataclass(frozen=True)
class Parameter:
    """What a parameter of a trial may be."""

    kind: type
    default: Value
    low: float = 0  # inclusive, as is `high`, unless `high_is_open`
    high: float | None = None
    choices: tuple[Value, ...] = ()
    high_is_open: bool = False
    pattern: str = ""  # of further texts besides `choices`
    pattern_words: str = ""  # what they are

    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
            return f"{words}, or {self.pattern_words}" if self.pattern else words
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a number"
        if self.high is None:
            return f"{noun} of at least {self.low:g}"
        return f"{noun} from {self.low:g} to {'below ' if self.high_is_open else ''}{self.high:g}"

    def check(self, value: Any) -> Value:
        """Return `value` in the parameter's own type, or raise ValueError with what would be accepted."""
        if not (self._takes_text(value) if self.kind is str else self._takes_number(value)):
            raise ValueError(f"{value!r} is not accepted; it takes {self.accepted()}")
        return self.kind(value)  # type: ignore[no-any-return]

    def _takes_text(self, value: Any) -> bool:
        matches = self.pattern and isinstance(value, str) and re.fullmatch(self.pattern, value)
        return value in self.choices or bool(matches)

    def _takes_number(self, value: Any) -> bool:
        """Whether a number or a truth value fits: of the right kind, finite, and in the range."""
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, (int, float)) or not self.low <= value < math.inf:
            return False
        if self.choices and value not in self.choices:
            return False
        # The range first: an integer beyond the largest float has no float to convert to.
        too_high = self.high is not None and (value >= self.high if self.high_is_open else value > self.high)
        return not too_high and (self.kind is float or value == int(value))


VGG_MODELS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg16-short", "vgg19-short")
MODEL_NAMES = ("lenet", "convnet", "cnn3", "cnn1", *VGG_MODELS)
OWN_WORDS = "a function of your own as my_module:build"
OWN_MODEL = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"

PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(str, "cnn3", choices=MODEL_NAMES, pattern=OWN_MODEL, pattern_words=OWN_WORDS),
    "activation": Parameter(str, "relu", choices=("relu", "leaky_relu", "sigmoid", "tanh")),
    "batch_norm": Parameter(bool, False),
    # Where batch normalisation stands: after_activation is layer, activation, dropout, norm.
    "norm_position": Parameter(str, "before_activation", choices=("before_activation", "after_activation")),
    "hidden_units": Parameter(int, 100, low=1, high=65536),  # width of the last hidden fully connected layer
    "padding_mode": Parameter(str, "zeros", choices=("zeros", "reflect")),  # of the first convolution
    "init": Parameter(str, "default", choices=("default", "xavier")),  # initial weights
    "softmax": Parameter(bool, False),  # a softmax before the cross-entropy loss, the mistake of two reports
    "normalize": Parameter(bool, False),  # subtract the training images' channel mean, divide by their deviation
    "optimizer": Parameter(str, "adam", choices=("sgd", "nesterov", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "rmsprop")),
    "amsgrad": Parameter(bool, False),
    "beta1": Parameter(float, 0.9, high=1, high_is_open=True),
    "beta2": Parameter(float, 0.999, high=1, high_is_open=True),
    "eps": Parameter(float, 0.0, high=1),
    "alpha": Parameter(float, 0.99, high=1, high_is_open=True),
    "schedule": Parameter(str, "step", choices=("step", "none", "cosine", "warm_restarts", "onecycle", "exponential", "multistep", "polynomial", "plateau")),
    "milestones": Parameter(int, 0), "cosine_epochs": Parameter(int, 0), "restart_epochs": Parameter(int, 10, low=1),
    "restart_factor": Parameter(int, 1, low=1), "min_learning_rate": Parameter(float, 0.0), "onecycle_peak": Parameter(float, 0.3),
    "onecycle_start": Parameter(float, 25.0), "onecycle_end": Parameter(float, 1e4), "polynomial_power": Parameter(float, 1.0),
    "plateau_factor": Parameter(float, 0.1), "plateau_patience": Parameter(int, 10), "warmup_epochs": Parameter(int, 0),
    "loss": Parameter(str, "cross_entropy", choices=("cross_entropy", "focal", "mse", "bce")),
    "class_weights": Parameter(str, "none", choices=("none", "balanced"), pattern=r"[\d.e,+-]+", pattern_words="a list of a weight for each class"),
    "label_smoothing": Parameter(float, 0.0, high=1, high_is_open=True), "focal_gamma": Parameter(float, 2.0, high=100),
    "l1": Parameter(float, 0.0, high=1000), "gradient_clip": Parameter(float, 0.0), "ema_decay": Parameter(float, 0.0, high=1, high_is_open=True),
    "batch_norm_momentum": Parameter(float, 0.1, high=1),
    "rho": Parameter(float, 0.9, high=1, high_is_open=True),
    "dampening": Parameter(float, 0.0, high=1, high_is_open=True),
    "batch_size": Parameter(int, 64, low=1, high=65536),  # images per step
    "epochs": Parameter(int, 30, low=1, high=100_000),  # passes over the training images
    "train_images": Parameter(int, 0, low=0),  # training images used, class by class alike; 0 is all
    "validation_images": Parameter(int, 0, low=0),  # likewise; the same for all trials
    "image_size": Parameter(int, 32, choices=(28, 32, 48, 64, 96)),  # pixels of a side; the same for all trials
    "precision": Parameter(str, "auto", choices=("auto", "fp32", "bf16")),  # arithmetic of the forward pass
    "learning_rate": Parameter(float, 1e-3, low=1e-12, high=1000),
    "momentum": Parameter(float, 0.0, low=0, high=1, high_is_open=True),  # of sgd and rmsprop
    "weight_decay": Parameter(float, 0.0, low=0, high=1000),  # L2 penalty, added to the gradient
    "dropout": Parameter(float, 0.0, low=0, high=1, high_is_open=True),  # share of activations zeroed
    "step_size": Parameter(int, 20, low=1, high=100_000),  # StepLR: epochs between decays
    "gamma": Parameter(float, 1.0, low=1e-6, high=1),  # StepLR: factor of each decay; 1 is none
}

_ALL = frozenset(PARAMETERS)
_PADDED_WITH_ZEROS = _ALL - {"padding_mode"}
# For each model here: the parameters it has, and its report's own settings where they differ from the defaults above.
MODEL_TRAITS: dict[str, tuple[frozenset[str], dict[str, Value]]] = {
    "lenet": (_PADDED_WITH_ZEROS, {"hidden_units": 84}),
    "convnet": (_ALL, {"batch_norm": True, "hidden_units": 84}),
    "cnn3": (_PADDED_WITH_ZEROS, {"norm_position": "after_activation"}),
    "cnn1": (_PADDED_WITH_ZEROS - {"hidden_units"}, {}),
    **dict.fromkeys(VGG_MODELS, (_PADDED_WITH_ZEROS, {"batch_norm": True, "hidden_units": 500})),
}


def is_own(model: str) -> bool:
    """Whether the model is a user's own, named by module and function."""
    return ":" in model


def traits(model: str) -> tuple[frozenset[str], dict[str, Value]]:
    """The parameters that a model has (a user's own has all), and its defaults where those of `PARAMETERS` differ."""
    return (_ALL, {}) if is_own(model) else MODEL_TRAITS[model]


# What other programs call them.
ALIASES = {
    "lr": "learning_rate", "base_lr": "learning_rate", "bs": "batch_size", "batch": "batch_size", "wd": "weight_decay",
    "n_epochs": "epochs", "num_epochs": "epochs", "max_epochs": "epochs", "opt": "optimizer", "drop_rate": "dropout",
    "dropout_rate": "dropout", "network": "model", "arch": "model",
}  # fmt: skip


def check_parameter(name: str, value: Any, *, where: str) -> Value:
    """`value` as parameter `name` takes it; UsageError, which names `where`, if it is unknown or out of range."""
    if name not in PARAMETERS:
        hint = f"did you mean {ALIASES[name]}?" if name in ALIASES else f"{nearest(name, PARAMETERS)}."
        raise UsageError(f"{where}: there is no parameter {name!r}; {hint}")
    parameter = PARAMETERS[name]
    try:
        return parameter.check(value)
    except ValueError as error:
        is_none = value is None or (isinstance(value, str) and value.lower() in ("none", "null"))
        hint = "; 0 is none" if is_none and parameter.kind is not str and parameter.low == 0 else ""
        raise UsageError(f"{where}: {name} = {error}{hint}.") from None


def applies(name: str, values: Mapping[str, Value]) -> bool:
    """Whether parameter `name` does anything beside these `values` of the others; what is missing has its default."""
    has, defaults = traits(str(values.get("model", PARAMETERS["model"].default)))
    if name == "momentum":
        return values.get("optimizer", PARAMETERS["optimizer"].default) != "adam"
    if name == "norm_position":
        norm = values.get("batch_norm", defaults.get("batch_norm", PARAMETERS["batch_norm"].default))
        return name in has and bool(norm)
    return name in has


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
    amsgrad: bool = False
    loss: str = "cross_entropy"
    class_weights: str = "none"
    batch_norm_momentum: float = 0.1


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
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 0.0
    alpha: float = 0.99
    rho: float = 0.9
    dampening: float = 0.0
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    l1: float = 0.0
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    schedule: str = "step"
    milestones: int | str = 0
    cosine_epochs: int = 0
    restart_epochs: int = 10
    restart_factor: int = 1
    min_learning_rate: float = 0.0
    onecycle_peak: float = 0.3
    onecycle_start: float = 25.0
    onecycle_end: float = 1e4
    polynomial_power: float = 1.0
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    warmup_epochs: int = 0


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
        values: dict[str, Value] = {name: parameter.default for name, parameter in PARAMETERS.items()} | defaults
        complete = values | given
        values |= {name: value for name, value in given.items() if applies(name, complete)}
        if "hidden_units" not in has:
            values["hidden_units"] = 0
        if values["precision"] == "auto":
            values["precision"] = precision
        values |= {"classes": classes, "data_seed": data_seed, "seed": seed}
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """Rebuild a config from `to_dict`'s result; UsageError if a value is missing, unknown, or out of range."""
        known = [field.name for part in (Shape, Knobs) for field in fields(part)]
        from dataclasses import MISSING
        values = {f.name: f.default for part in (Shape, Knobs) for f in fields(part) if f.default is not MISSING} | dict(values)  # what was stored before there was a choice
        if unknown := [name for name in values if name not in known]:
            raise UsageError(f"trial config: there is no value {unknown[0]!r}; {nearest(unknown[0], known)}.")
        if missing := [name for name in known if name not in values]:
            raise UsageError(f"trial config: {', '.join(missing)} is missing; a config has all of {', '.join(known)}.")
        for name, least in (("classes", 2), ("data_seed", 0), ("seed", 0)):
            if type(values[name]) is not int or values[name] < least:
                fault = f"{name} = {values[name]!r}"
                raise UsageError(f"trial config: {fault} is not accepted; a whole number from {least}.")
        for name, value in values.items():
            if name in PARAMETERS and not (name == "hidden_units" and value == 0):
                check_parameter(name, value, where="trial config")
        check_image_size(str(values["model"]), values["image_size"], where="trial config")
        shape, knobs = ({field.name: values[field.name] for field in fields(part)} for part in (Shape, Knobs))
        return cls(Shape(**shape), Knobs(**knobs))

    def to_dict(self) -> dict[str, Value]:
        """All values, flat, as plain data."""
        return asdict(self.shape) | asdict(self.knobs)


def check_image_size(model: str, size: Value, *, where: str) -> None:
    """Raise UsageError where a model has nothing left of images so small."""
    if model in VGG_MODELS and size < 32:  # type: ignore[operator]
        raise UsageError(f"{where}: {model} halves images five times; accepted: image_size = 32, 48, 64 or 96.")


def derive_seed(*path: int | str) -> int:
    """A seed of 32 bits for a place in the sweep, such as ``derive_seed(sweep_seed, "trial", 7)``.

    A hash, not a sum: neighbouring seeds and numbers give unrelated streams, on every machine the same.
    """
    digest = hashlib.sha256(":".join(str(part) for part in path).encode()).digest()
    return int.from_bytes(digest[:4], "big")
