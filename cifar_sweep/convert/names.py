"""What other programs call parameters and their values."""

import re
from functools import cache
from typing import Any

from cifar_sweep.parameter import Parameter
from cifar_sweep.parameters import ALIASES, BY_LAYER, MOST_LAYERS, OWN, PARAMETERS

# Words of a name that say nothing of what it is.
_COUNTED = ("number", "num", "nb", "nof", "n")
_FILLERS = (*_COUNTED, "of", "in", "the", "use", "is", "apply", "do", "with", "enable", "per", "rate")
# Beside `ALIASES`: what names without such words stand for in sweeps of small networks and for nothing else.
_MORE = {
    "learning_rate": "lr l_rate init_lr initial_lr learning_rate_init eta",
    "batch_size": "batch train_batch batch_sz train_batch_size training_batch_size",
    "epochs": "epoch max_epoch max_epochs train_epochs training_epochs num_train_epochs",
    "optimizer": "optim optimiser optimizer_name optimizer_type",
    "weight_decay": "l2 l2_reg l2_lambda l2_penalty l2_regularization reg decay_weight",
    "dense_units": "dense dense_layer fc fc_layer neuron neurons node nodes unit units hidden",
    "dense_layers": "fc_layers fully_connected_layers",
    "filters": "filter channel channels out_channels base_filters filter_initial initial_filters start_filters"
    " filter_count conv_filters conv_filter filters_layer",
    "filter_growth": "filter_multiplier filter_organization filter_organisation filter_org fil_org filter_strategy"
    " filters_organization filters_organisation filters_org filter_scheme",
    "kernel_size": "kernel filter_size filter_sizes size_filters kernel_sizes size_filter conv_kernel_size"
    " conv_kernel cv_kernel_size",
    "conv_layers": "layers conv_blocks blocks convolutional_layers cnn_layers",
    "activation": "activation_function act act_fn activation_fn act_func activations act_fu conv_activation"
    " activation_func activation_type",
    "dense_activation": "dense_act fc_activation",
    "batch_norm": "batch_normalization batch_normalisation bn batch_normalize",
    "batch_norm_momentum": "bn_momentum",
    "dropout": "dropouts drop_out dropout_prob dropout_probability p_dropout drop dropout_p dense_dropout fc_dropout"
    " drop_out_prob",
    "dropout_place": "dropout_loc dropout_location dropout_position",
    "augmentation": "data_aug data_augmentation augment aug auto_augment auto_aug rand_augment augment_data"
    " data_augment trivial_augment data_augmentaion",
    "pooling": "pool pool_type pooling_type pooling_alg pooling_method",
    "pool_size": "pooling_size max_pooling_size max_pool_size pool_kernel_size",
    "global_pooling": "gap global_avg_pooling global_average_pooling",
    "stride": "strides filter_stride conv_stride",
    "loss": "loss_fn loss_function criterion loss_type",
    "schedule": "scheduler lr_scheduler lr_schedule scheduler_type lr_scheduler_type",
    "image_size": "image_dim img_size img_dim image_shape img_shape resize",
    "model": "model_name model_type architecture base_model backbone net network_name pretrained_model"
    " pretrained_models",
    "label_smoothing": "smoothing label_smooth",
    "gradient_clip": "grad_clip clip_grad_norm max_grad_norm grad_norm_max gradient_clip_val",
    "mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "cutout": "cutout_len cutout_length cutout_size",
    "beta1": "beta_1 betas1", "beta2": "beta_2", "eps": "epsilon", "gamma": "lr_decay",
    "patience": "early_stopping_patience early_stop_patience", "repeat": "seed random_seed rng_seed",
    "init": "weight_init initializer init_method",
}  # fmt: skip
# Names such as number_of_neurons_in_the_dense_layer, without those words.
_WIDTH = re.compile(
    r"(?=.*(dense|fc|fullyconnected|lin|hidden))(out|layer|dense|fc|fullyconnected|linear|lin|hidden)*"
    r"(neurons?|units?|nodes?|size|dim|width|features)(layer|dense|fc|fullyconnected|linear|lin|hidden)*"
)
# Values of texts, without their signs and in small letters.
_VALUES = {
    "swish": "silu", "leakyrelu": "leaky_relu", "lrelu": "leaky_relu", "linear": "none", "identity": "none",
    "equal": "same", "constant": "same", "const": "same", "all_same": "same", "doubled": "double", "doubling": "double",
    "x2": "double", "halved": "half", "halve": "half", "halving": "half", "crossentropy": "cross_entropy",
    "ce": "cross_entropy", "categoricalcrossentropy": "cross_entropy", "crossentropyloss": "cross_entropy",
    "focalloss": "focal", "mean_squared_error": "mse", "mseloss": "mse", "average": "avg", "avgpool": "avg",
    "maxpool": "max", "avgpooling": "avg", "maxpooling": "max", "averagepooling": "avg",
    "cosineannealing": "cosine", "cosineannealinglr": "cosine", "steplr": "step", "exponentiallr": "exponential",
    "reducelronplateau": "plateau", "onecyclelr": "onecycle", "cosineannealingwarmrestarts": "warm_restarts",
    "stochasticgradientdescent": "sgd", "glorot": "xavier", "xavieruniform": "xavier", "nag": "nesterov",
    "nesterovsgd": "nesterov", "sgdnesterov": "nesterov", "sgdwithnesterov": "nesterov", "all": "both",
}  # fmt: skip
_YES = {"true": True, "yes": True, "on": True, "y": True, "false": False, "no": False, "off": False, "n": False}
SQUARES = ("kernel_size", "pool_size", "stride", "image_size")  # of which programs may give height and width
_KINDS = ("name", "type", "kind", "_target_")  # last parts of names with dots that say which, not what


def parameter_of(name: str, *, first: int = 1) -> str | None:
    """Our name of a parameter; of one with dots, the last part counts. None where there is no such one.

    One of a single layer has its number; `first` is the number that the program gives to the first layer.
    """
    above, _, last = name.rpartition(".")
    for known in (name, above.rpartition(".")[2] if last in _KINDS else last):
        if known in PARAMETERS and first == 1 and known != "metric" and not known.startswith(OWN):
            return known
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", known)]
        if whole := _general(words):
            return whole
        numbers = [int(word) for word in words if word.isdigit()]
        general = _general([word for word in words if not word.isdigit() and word not in ("l", "layer", "block")])
        if len(numbers) == 1 and general in BY_LAYER and 1 <= (layer := numbers[0] + 1 - first) <= MOST_LAYERS:
            return f"{general}_{layer}"
    return None


def _general(words: list[str]) -> str | None:
    """Our name of what these words are, of no single layer."""
    bare = "".join(words)
    if found := _names().get(bare):
        return found
    words = ["number", *words[2:]] if words[:2] == ["no", "of"] else words
    bare = "".join(word for word in words if word not in _FILLERS)
    if _WIDTH.fullmatch(bare):
        return "dense_units"
    if set(words) & set(_COUNTED):
        bare = {"kernel": "filters", "kernels": "filters"}.get(bare, bare + "s" * bare.endswith(("layer", "block")))
    return _names().get(bare)


@cache
def _names() -> dict[str, str]:
    """Our names by what they are called without signs between words."""
    ours = {name: name for name in PARAMETERS if name != "metric" and not name.startswith(OWN) and not layered(name)}
    more = {word: name for name, words in _MORE.items() for word in words.split()}
    return {word.replace("_", ""): name for word, name in (more | ALIASES | ours).items()}


def layered(name: str) -> tuple[str, int] | None:
    """What one of our parameters of a single layer is of all, and its layer."""
    general, _, number = name.rpartition("_")
    return (general, int(number)) if general in BY_LAYER and number.isdigit() else None


def switched_on(name: str) -> str:
    """The augmentation that a switch of this name is taken to put on."""
    word = name.lower().replace("_", "")
    known = {"autoaug": "autoaugment", "randaug": "randaugment", "trivialaug": "trivialaugment"}
    return next((meant for part, meant in known.items() if part in word), "crop")


def value_of(name: str, value: Any, *, on: str = "crop") -> Any:
    """A value in our words and in its parameter's type; ValueError with what would be accepted.

    `on` is the augmentation that is meant where one is put on.
    """
    parameter = PARAMETERS[name]
    if name == "repeat" and isinstance(value, int):
        value += 1  # 0 is a seed of each trial's own
    if isinstance(value, list) and name in SQUARES:
        value = value[0] if is_square(value) else [each[0] if is_square(each) else each for each in value]
    if isinstance(value, list):
        return list(value) if parameter.check(value) else value
    word = value.strip().lower() if isinstance(value, str) else value
    if name in SQUARES and isinstance(word, str) and (square := re.fullmatch(r"(\d+) ?[x,*] ?\1", word.strip("()[]"))):
        return parameter.check(int(square[1]))
    if parameter.kind is bool or name == "augmentation":
        truth = _YES.get(word, word) if isinstance(word, str) else bool(word) if word in (0, 1) else word
        value = word = (on if truth else "none") if name == "augmentation" and isinstance(truth, bool) else truth
    if parameter.kind is float and parameter.default == 0 and word in (None, "none"):
        return 0.0
    if parameter.kind is int and isinstance(value, float) and value.is_integer():
        return parameter.check(int(value))
    if parameter.kind is str and not isinstance(word, str):
        word = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value).lower()
    return parameter.check(_text_of(name, word)) if parameter.kind is str else parameter.check(value)


def is_square(value: Any) -> bool:
    """Whether a value is the height and width of a square."""
    return isinstance(value, list) and len(value) == 2 and value[0] == value[1] and not isinstance(value[0], list)


def _text_of(name: str, word: str) -> str:
    parameter: Parameter = PARAMETERS[name]
    word = word.rpartition(".")[2] if re.match(r"(torch|nn|optim|tf|keras)\.", word) else word
    bare = re.sub(r"[-_ ]", "", word)
    same = {str(choice).replace("_", "").replace("-", ""): str(choice) for choice in parameter.choices}
    return (
        same.get(bare) or _VALUES.get(word) or _VALUES.get(bare) or (_network(bare) if name == "model" else "") or word
    )


@cache
def _network(bare: str) -> str:
    """The network of torchvision that is called so without signs; empty where there is none."""
    import torchvision  # only where one is named that is none of ours: it takes seconds

    names = torchvision.models.list_models(module=torchvision.models)
    return next((f"torchvision:{name}" for name in names if name.replace("_", "") == bare), "")
