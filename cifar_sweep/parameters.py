"""The parameters of a trial: what each may be, and when it does anything. Standard library only."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from cifar_sweep.errors import UsageError, nearest
from cifar_sweep.parameter import Parameter
from cifar_sweep.parameter import Value as Value  # what a value is, for those who ask for the parameters
from cifar_sweep.training_parameters import AUGMENTATION, OPTIMIZER_NAMES, TRAINING

VGG_MODELS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg16-short", "vgg19-short")
MODEL_NAMES = ("lenet", "convnet", "cnn3", "cnn1", "cnn", *VGG_MODELS)
OWN_WORDS = "torchvision:NAME, timm:NAME, or a function of your own as my_module:build"
OWN_MODEL = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d][\w.]*"
ACTIVATION_NAMES = (
    "relu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "relu6",
    "hardswish",
    "softplus",
    "none",
)
SMALLEST_SIDE = 8  # pixels
MOST_LAYERS = 16  # of a cnn's parameters by layer

_GENERAL: dict[str, Parameter] = {
    "model": Parameter(str, "cnn3", "the network", choices=MODEL_NAMES, pattern=OWN_MODEL, pattern_words=OWN_WORDS),
    "activation": Parameter(str, "relu", "the activation after each layer", choices=ACTIVATION_NAMES),
    "batch_norm": Parameter(bool, False, "batch normalisation after convolutions"),
    "norm_position": Parameter(
        str, "before_activation", "where it stands; after_activation is layer, activation, dropout, norm",
        choices=("before_activation", "after_activation"), only_if={"batch_norm": (True,)},
    ),
    "hidden_units": Parameter(int, 100, "width of the last hidden fully connected layer", low=1, high=65536),
    "padding_mode": Parameter(str, "zeros", "what the first convolution pads with", choices=("zeros", "reflect")),
    "init": Parameter(
        str, "default", "initial weights; kaiming is He's for ReLU", choices=("default", "xavier", "kaiming")
    ),
    "softmax": Parameter(
        bool, False, "a softmax before the cross-entropy loss, the mistake of two reports",
        only_if={"loss": ("cross_entropy",)},
    ),
    "normalize": Parameter(bool, False, "subtract the training images' channel mean, divide by their deviation"),
    "optimizer": Parameter(str, "adam", "the optimizer", choices=OPTIMIZER_NAMES),
    "patience": Parameter(int, 0, "epochs without a better one after which a trial is complete; 0 is never"),
    "repeat": Parameter(int, 0, "trials of one number begin with one seed; 0 is a seed for each trial", high=1_000_000),
    "batch_size": Parameter(int, 64, "images per step", low=1, high=65536),
    "epochs": Parameter(int, 30, "passes over the training images", low=1, high=100_000),
    "train_images": Parameter(int, 0, "training images used, class by class alike; 0 is all"),
    "validation_images": Parameter(int, 0, "likewise; the same for all trials"),
    "image_size": Parameter(int, 32, "pixels of a side; the same for all trials", low=SMALLEST_SIDE, high=512),
    "input_size": Parameter(
        int, 0, "pixels of a side that the network sees, to which images are averaged; from 8; 0 is all", high=512
    ),
    "precision": Parameter(str, "auto", "arithmetic of the forward pass", choices=("auto", "fp32", "bf16")),
    "metric": Parameter(
        str, "accuracy", "what trials and their epochs are chosen by on the validation images; the same for all trials",
        choices=("accuracy", "loss", "f1", "top5"),
    ),
    "learning_rate": Parameter(float, 1e-3, "the step of the optimizer", low=1e-12, high=1000),
    "momentum": Parameter(
        float, 0.0, "share of the last step that is kept; of nesterov 0.9 where it is not given", high=1,
        high_is_open=True, only_if={"optimizer": ("sgd", "nesterov", "rmsprop")},
    ),
    "weight_decay": Parameter(
        float, 0.0, "L2 penalty, added to the gradient; of adamw decoupled, as PyTorch has it", high=1000
    ),
    "dropout": Parameter(float, 0.0, "share of activations zeroed", high=1, high_is_open=True),
    "step_size": Parameter(
        int, 20, "epochs between decays", low=1, high=100_000, only_if={"schedule": ("step",)}
    ),
    "gamma": Parameter(
        float, 1.0, "factor of each decay, 1 is none; where it is not given, 0.95 of exponential and 0.1 of multistep",
        low=1e-6, high=1, only_if={"schedule": ("step", "exponential", "multistep")},
    ),
}  # fmt: skip

# What is usual beside a value of another parameter.
_BESIDE: dict[str, tuple[str, dict[Value, Value]]] = {
    "momentum": ("optimizer", {"nesterov": 0.9}),
    "gamma": ("schedule", {"exponential": 0.95, "multistep": 0.1}),
}


def defaults_beside(values: Mapping[str, Value]) -> dict[str, Value]:
    """The defaults of parameters for which these values of others say another one than is usual."""
    return {name: by[values[other]] for name, (other, by) in _BESIDE.items() if values[other] in by}


# Of `model = "cnn"` alone. A block is some convolutions and a pooling; a list has one value a block or dense layer, and
# says how many there are.
_DENSE: dict[str, tuple[Value, ...]] = {"dense_layers": tuple(range(1, MOST_LAYERS + 1))}
_NETWORK: dict[str, Parameter] = {
    "conv_layers": Parameter(int, 3, "blocks of a convolution and a pooling", high=MOST_LAYERS),
    "convs_per_block": Parameter(int, 1, "convolutions in each block", low=1, high=8),
    "filters": Parameter(int, 32, "filters of the first block, or a list", low=1, high=4096, listed=True),
    "filter_growth": Parameter(
        str, "same", "how filters grow from block to block",
        choices=("same", "double", "half"), pattern=r"\d*\.?\d+", pattern_words='a factor as a text, such as "1.5"',
    ),
    "kernel_size": Parameter(int, 3, "pixels of a kernel's side", low=1, high=31, listed=True),
    "stride": Parameter(int, 1, "pixels between a convolution's places", low=1, high=8, listed=True),
    "padding": Parameter(
        str, "same", "pixels at each border; same keeps an image's size, valid is 0",
        choices=("same", "valid"), pattern="[0-8]", pattern_words='a number as a text, such as "1"',
    ),
    "pooling": Parameter(str, "max", "how a block's end is pooled", choices=("max", "avg", "none"), listed=True),
    "pool_size": Parameter(
        int, 2, "pixels of a pooling's side, and between its places; 1 is none", low=1, high=8, listed=True
    ),
    "global_pooling": Parameter(bool, False, "the mean of each channel in place of the flattening"),
    "dense_layers": Parameter(int, 1, "hidden dense layers", high=MOST_LAYERS),
    "dense_units": Parameter(int, 128, "width of hidden dense layers", low=1, high=65536, listed=True, only_if=_DENSE),
    "dense_batch_norm": Parameter(bool, False, "batch normalisation after hidden dense layers", only_if=_DENSE),
    "dense_activation": Parameter(
        str, "as_activation", "the activation of dense layers", choices=("as_activation", *ACTIVATION_NAMES),
        only_if=_DENSE,
    ),
    "conv_dropout": Parameter(
        float, 0.0, "share of whole channels zeroed after a block; where it is 0 for all, as dropout_place has it",
        high=1, high_is_open=True, listed=True,
    ),
    "dropout_place": Parameter(
        str, "dense", "where dropout acts: after dense layers, after blocks, or both", choices=("dense", "conv", "both")
    ),
    "input_dropout": Parameter(float, 0.0, "share of the image's values zeroed", high=1, high_is_open=True),
}  # fmt: skip
# What does nothing in a sweep where all of these are so in each of its trials.
IDLE: tuple[tuple[tuple[str, ...], dict[str, Value]], ...] = (
    (("mix_probability",), {"mixup": 0.0, "cutmix": 0.0}),
    (("dampening",), {"momentum": 0.0}),
    (("dropout_place",), {"dropout": 0.0}),
    (("pool_size",), {"pooling": "none"}),
    (("padding_mode",), {"model": "cnn", "padding": "valid"}),
    (("padding_mode",), {"model": "cnn", "padding": "0"}),
    (("filter_growth",), {"conv_layers": 1}),
    (
        (
            "convs_per_block", "filters", "filter_growth", "kernel_size", "stride", "padding", "pooling", "pool_size",
            "conv_dropout",
        ),
        {"conv_layers": 0},
    ),
)  # fmt: skip
# Of networks of torchvision and timm alone.
_NAMED: dict[str, Parameter] = {
    "pretrained": Parameter(
        bool, False, "begin with the library's weights, which are downloaded where they are missing"
    ),
    "weights_file": Parameter(
        str,
        "none",
        "begin with the weights of a file, a state dict of this network; its last layer may be of other classes",
        choices=("none",),
        pattern=r"[^:]+\.safetensors",
        only_if={"pretrained": (False,)},
        pattern_words="the path of a .safetensors file from where the command is run",
    ),
    "freeze": Parameter(
        int, 0, "stages from the first that are not trained; -2 is all but the last two", low=-100, high=100
    ),
    "head_layers": Parameter(int, 0, "hidden dense layers before the last layer, with ReLU and dropout", high=8),
    "head_units": Parameter(int, 256, "their width", low=1, high=65536, only_if={"head_layers": tuple(range(1, 9))}),
}
NETWORK = tuple(_NETWORK)
# Those that a layer can have for itself, as in filters_2, and what counts the layers.
BY_LAYER = {
    **dict.fromkeys(
        ("filters", "kernel_size", "stride", "padding", "pooling", "pool_size", "batch_norm", "conv_dropout"),
        "conv_layers",
    ),
    **dict.fromkeys(("dense_units", "dropout"), "dense_layers"),
}


def _of_layers(name: str) -> dict[str, Parameter]:
    """A parameter by layer."""
    general, counted = (_GENERAL | _NETWORK)[name], BY_LAYER[name]
    return {
        f"{name}_{layer}": replace(
            general, listed=False, words=f"the same of layer {layer}",
            only_if={counted: tuple(range(layer, MOST_LAYERS + 1))},
        )
        for layer in range(1, MOST_LAYERS + 1)
    }  # fmt: skip


_LAYERS = {name: parameter for base in BY_LAYER for name, parameter in _of_layers(base).items()}


class _OfOwn(Parameter):
    """A parameter of a user's own network, which says itself what it takes."""

    def accepted(self) -> str:
        return "a number, a text, true or false"

    def check(self, value: Any) -> Value:
        if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{value!r} is not accepted; it takes {self.accepted()}")
        return value


OWN = "net."  # how the names of parameters of a user's own network begin, in files and in studies
_OWN_NAME = re.compile(r"net\.[A-Za-z_]\w*")
_OF_OWN = _OfOwn(object, 0, "of a user's own network")


class _Parameters(dict[str, Parameter]):
    """Those that are known here, and any of a user's own network."""

    def __missing__(self, name: str) -> Parameter:
        if name in self:
            return _OF_OWN
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and bool(_OWN_NAME.fullmatch(name)))


# Of the first classes each for itself; the others weigh as class_weights says.
_CLASSES = {
    f"class_weights_{number}": Parameter(float, 1.0, f"the weight of class {number}", high=1e6)
    for number in range(1, MOST_LAYERS + 1)
}
_LAYERS |= _CLASSES
PARAMETERS: dict[str, Parameter] = _Parameters(_GENERAL | TRAINING | AUGMENTATION | _NETWORK | _NAMED | _LAYERS)
# Without those of single layers: what a sentence has room for.
NAMES = (*_GENERAL, *TRAINING, *AUGMENTATION, *_NETWORK, *_NAMED)

_CNN = frozenset(PARAMETERS) - {"hidden_units"} - _NAMED.keys()
_ALL = frozenset(PARAMETERS) - _NETWORK.keys() - (_LAYERS.keys() - _CLASSES.keys()) - _NAMED.keys()
_OF_LIBRARIES = (_ALL | _NAMED.keys()) - {
    "activation", "batch_norm", "norm_position", "hidden_units", "padding_mode", "init", "softmax",
    "batch_norm_momentum",
}  # fmt: skip
_PADDED_WITH_ZEROS = _ALL - {"padding_mode"}
# For each model here: the parameters it has, and its report's own settings where they differ from the defaults above.
MODEL_TRAITS: dict[str, tuple[frozenset[str], dict[str, Value]]] = {
    "lenet": (_PADDED_WITH_ZEROS, {"hidden_units": 84}),
    "convnet": (_ALL, {"batch_norm": True, "hidden_units": 84}),
    "cnn3": (_PADDED_WITH_ZEROS, {"norm_position": "after_activation"}),
    "cnn1": (_PADDED_WITH_ZEROS - {"hidden_units"}, {}),
    "cnn": (_CNN, {}),
    **dict.fromkeys(VGG_MODELS, (_PADDED_WITH_ZEROS, {"batch_norm": True, "hidden_units": 500})),
}


def base_of(name: str) -> str:
    """The parameter that one of a single layer belongs to, as in filters of filters_2; any other is its own."""
    return name.rpartition("_")[0] if name in _LAYERS else name


def is_own(model: str) -> bool:
    """Whether the model is a user's own, named by module and function."""
    return ":" in model and not is_named(model)


def is_named(model: str) -> bool:
    """Whether the model is one of torchvision's or timm's."""
    return model.startswith(("torchvision:", "timm:"))


def traits(model: str) -> tuple[frozenset[str], dict[str, Value]]:
    """The parameters that a model has (a user's own has all), and its defaults where those of `PARAMETERS` differ."""
    if is_named(model):
        return _OF_LIBRARIES, {}
    return (_ALL, {}) if is_own(model) else MODEL_TRAITS[model]


# Batch norm of some layers.
NORMS = ("dense_batch_norm", *(f"batch_norm_{layer}" for layer in range(1, MOST_LAYERS + 1)))
# What other programs call them.
ALIASES = {
    "lr": "learning_rate", "base_lr": "learning_rate", "bs": "batch_size", "batch": "batch_size", "wd": "weight_decay",
    "n_epochs": "epochs", "num_epochs": "epochs", "max_epochs": "epochs", "opt": "optimizer", "drop_rate": "dropout",
    "dropout_rate": "dropout", "network": "model", "arch": "model",
}  # fmt: skip


def check_parameter(name: str, value: Any, *, where: str) -> Value:
    """`value` as parameter `name` takes it; UsageError, which names `where`, if it is unknown or out of range."""
    if name not in PARAMETERS:
        hint = f"did you mean {ALIASES[name]}?" if name in ALIASES else f"{nearest(name, NAMES)}."
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
    has, _defaults = traits(str(values.get("model", PARAMETERS["model"].default)))
    if name not in has:
        return name.startswith(OWN) and is_own(str(values.get("model", "")))
    conditions = PARAMETERS[name].only_if
    if not conditions:
        return True
    known = known_beside(values, conditions)
    return all(known[other] in accepted and applies(other, values) for other, accepted in conditions.items())


def known_beside(values: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    """What parameters are beside these values of the others; one that is missing has the default of its model.

    Lists say how many layers there are, and batch norm is on where any layer has it.
    """
    _has, defaults = traits(str(values.get("model", PARAMETERS["model"].default)))
    known = {name: values.get(name, defaults.get(name, PARAMETERS[name].default)) for name in names}
    if not known.keys().isdisjoint(BY_LAYER.values()):
        known |= {name: count for name, count in layer_counts(values).items() if name in known}
    if "batch_norm" in known and any(values.get(name) is True for name in NORMS):
        known["batch_norm"] = True
    for name, (other, by) in _BESIDE.items():
        if name in known and name not in values:
            known[name] = by.get(known_beside(values, [other])[other], known[name])
    return known


def layer_counts(values: Mapping[str, Value], *, where: str = "trial parameters") -> dict[str, Value]:
    """How many layers of a cnn the lists among these values say; UsageError if they, or a given number, differ."""
    counts: dict[str, Value] = {}
    for name, counted in BY_LAYER.items():
        if name in values and (entries := PARAMETERS[name].entries(values[name])):
            given = counts.get(counted, values.get(counted, len(entries)))
            if given != len(entries):
                fault = f"{name} = {values[name]} has {len(entries)} of them, one a layer, where there are {given}"
                raise UsageError(f"{where}: {fault} ({counted}); lists are to be of one length.")
            if len(entries) > MOST_LAYERS:
                raise UsageError(
                    f"{where}: {name} = {values[name]} is of {len(entries)} layers; at most {MOST_LAYERS}."
                )
            counts[counted] = len(entries)
    return counts
