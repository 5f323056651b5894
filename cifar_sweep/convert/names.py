"""What other programs call parameters and their values."""

from typing import Any

from cifar_sweep.parameter import Parameter
from cifar_sweep.parameters import ALIASES, OWN, PARAMETERS

# Beside `ALIASES`: names that stand for nothing else in sweeps of small networks.
_MORE = {
    "learning rate": "learning_rate", "l_rate": "learning_rate", "init_lr": "learning_rate", "eta": "learning_rate",
    "batchsize": "batch_size", "train_batch_size": "batch_size", "epoch": "epochs", "max_epoch": "epochs",
    "num_train_epochs": "epochs", "optim": "optimizer", "optimiser": "optimizer", "optimizer_name": "optimizer",
    "l2": "weight_decay", "l2_reg": "weight_decay", "l2_lambda": "weight_decay", "reg": "weight_decay",
    "fc_layer_size": "dense_units", "fc_size": "dense_units", "fc_units": "dense_units", "dense_size": "dense_units",
    "dense_layer_size": "dense_units", "dense_neurons": "dense_units", "num_dense": "dense_units",
    "dense_nodes": "dense_units", "n_neurons": "dense_units", "neurons_dense": "dense_units",
    "hidden_size": "dense_units",
    "dense": "dense_units", "dense_layer": "dense_units", "fc_neurons": "dense_units", "num_neurons": "dense_units",
    "hidden_layer_size": "dense_units", "units": "dense_units", "dense_layer_neurons": "dense_units",
    "num_dense_layers": "dense_layers", "n_dense_layers": "dense_layers", "fc_layers": "dense_layers",
    "num_filters": "filters", "n_filters": "filters", "num_filter": "filters", "no_of_filters": "filters",
    "number_of_filters": "filters", "filter_count": "filters", "base_filters": "filters", "channels": "filters",
    "num_channels": "filters", "out_channels": "filters", "filter_multiplier": "filter_growth",
    "filter_organization": "filter_growth", "filter_organisation": "filter_growth", "filter_org": "filter_growth",
    "filters_organization": "filter_growth", "kernel": "kernel_size", "filter_size": "kernel_size",
    "filter_sizes": "kernel_size", "size_filters": "kernel_size", "kernel_sizes": "kernel_size",
    "size_of_filters": "kernel_size", "num_conv_layers": "conv_layers", "n_conv_layers": "conv_layers",
    "num_layers": "conv_layers", "n_layers": "conv_layers", "conv_blocks": "conv_layers", "num_blocks": "conv_layers",
    "activation_function": "activation", "act": "activation", "act_fn": "activation", "activation_fn": "activation",
    "act_func": "activation", "activations": "activation", "act_fu": "activation", "dense_act": "dense_activation",
    "conv_activation": "activation", "batchnorm": "batch_norm", "batch_normalization": "batch_norm",
    "batch_normalisation": "batch_norm", "bn": "batch_norm", "use_batch_norm": "batch_norm", "use_bn": "batch_norm",
    "batch_normalize": "batch_norm", "dropouts": "dropout", "drop_out": "dropout", "dropout_prob": "dropout",
    "p_dropout": "dropout", "drop": "dropout", "dropout_p": "dropout", "dense_dropout": "dropout",
    "fc_dropout": "dropout",
    "data_aug": "augmentation", "data_augmentation": "augmentation", "augment": "augmentation", "aug": "augmentation",
    "autoaugment": "augmentation", "auto_augment": "augmentation", "use_autoaugment": "augmentation",
    "randaugment": "augmentation", "rand_augment": "augmentation", "augment_data": "augmentation",
    "data_augment": "augmentation", "use_augmentation": "augmentation",
    "pool": "pooling", "pool_type": "pooling", "pooling_type": "pooling", "loss_fn": "loss", "loss_function": "loss",
    "criterion": "loss", "scheduler": "schedule", "lr_scheduler": "schedule", "lr_schedule": "schedule",
    "image_dim": "image_size", "img_size": "image_size", "model_name": "model", "architecture": "model",
    "smoothing": "label_smoothing", "grad_clip": "gradient_clip", "clip_grad_norm": "gradient_clip",
    "max_grad_norm": "gradient_clip", "mixup_alpha": "mixup", "cutmix_alpha": "cutmix", "beta_1": "beta1",
    "beta_2": "beta2", "betas1": "beta1", "epsilon": "eps", "lr_decay": "gamma", "early_stopping_patience": "patience",
    "strides": "stride", "seed": "repeat", "random_seed": "repeat", "rng_seed": "repeat",
    "weight_init": "init", "initializer": "init",
}  # fmt: skip
# Values of texts, without their signs and in small letters.
_VALUES = {
    "swish": "silu", "leakyrelu": "leaky_relu", "lrelu": "leaky_relu", "linear": "none", "identity": "none",
    "equal": "same", "constant": "same", "all_same": "same", "doubled": "double", "doubling": "double", "x2": "double",
    "halved": "half", "halve": "half", "halving": "half", "crossentropy": "cross_entropy", "ce": "cross_entropy",
    "categoricalcrossentropy": "cross_entropy", "crossentropyloss": "cross_entropy", "focalloss": "focal",
    "mean_squared_error": "mse", "mseloss": "mse", "average": "avg", "avgpool": "avg", "maxpool": "max",
    "cosineannealing": "cosine", "cosineannealinglr": "cosine", "steplr": "step", "exponentiallr": "exponential",
    "reducelronplateau": "plateau", "onecyclelr": "onecycle", "cosineannealingwarmrestarts": "warm_restarts",
    "stochasticgradientdescent": "sgd", "glorot": "xavier", "xavieruniform": "xavier", "nag": "nesterov",
    "nesterovsgd": "nesterov", "sgdnesterov": "nesterov", "sgdwithnesterov": "nesterov",
}  # fmt: skip
_YES = {"true": True, "yes": True, "on": True, "y": True, "false": False, "no": False, "off": False, "n": False}


def parameter_of(name: str) -> str | None:
    """Our name of a parameter; of one with dots, the last part counts. None where there is no such one."""
    above, _, last = name.rpartition(".")
    for known in (name, above.rpartition(".")[2] if last in ("name", "type", "kind") else last):
        word = known.strip().lower().replace("-", "_").replace(" ", "_")
        for ours in (word, ALIASES.get(word), _MORE.get(word), _MORE.get(word.removesuffix("s"))):
            if ours in PARAMETERS and ours != "metric" and not ours.startswith(OWN):
                return ours
    return None


def switched_on(name: str) -> str:
    """The augmentation that a switch of this name is taken to put on."""
    word = name.lower().replace("_", "")
    return next((known for known in ("autoaugment", "randaugment") if known in word), "crop")


def value_of(name: str, value: Any, *, on: str = "crop") -> Any:
    """A value in our words and in its parameter's type; ValueError with what would be accepted.

    `on` is the augmentation that is meant where one is put on.
    """
    parameter = PARAMETERS[name]
    if isinstance(value, list):
        return list(value) if parameter.check(value) else value
    word = value.strip().lower() if isinstance(value, str) else value
    if parameter.kind is bool or name == "augmentation":
        truth = _YES.get(word, word) if isinstance(word, str) else bool(word) if word in (0, 1) else word
        value = word = (on if truth else "none") if name == "augmentation" and isinstance(truth, bool) else truth
    if parameter.kind is int and isinstance(value, float) and value.is_integer():
        return parameter.check(int(value))
    if parameter.kind is str and not isinstance(word, str):
        word = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value).lower()
    return parameter.check(_text_of(parameter, word)) if parameter.kind is str else parameter.check(value)


def _text_of(parameter: Parameter, word: str) -> str:
    bare = word.replace("-", "").replace("_", "").replace(" ", "")
    same = {str(choice).replace("_", "").replace("-", ""): str(choice) for choice in parameter.choices}
    return same.get(bare) or _VALUES.get(word) or _VALUES.get(bare) or word
