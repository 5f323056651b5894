"""The reports' networks for images of three channels, each a function from a `Shape` to a plain ``nn.Sequential``.

Dropout layers are always there, with rate 0, so that a network's parameter names do not depend on the rate; the
trainer sets each trial's own rate.
"""

import torch
from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import is_named, is_own
from cifar_sweep.training.models.named import by_name
from cifar_sweep.training.models.networks import MODELS
from cifar_sweep.training.models.own import own

USUAL_MOMENTUM = 0.1


def build(shape: Shape, *, seed: int, code: str | None = None, begin: bool = False) -> nn.Module:
    """The network of `shape` on the CPU in float32, with initial weights that depend on `seed` alone.

    From float images [batch, 3, side, side] to logits [batch, classes]; to probabilities where ``shape.softmax`` is.
    With `begin` it has pretrained weights, where the shape says so. Those of `MODELS` are plain ``nn.Sequential``s.
    `code` is the fingerprint of a user's own file. Raises as `own` and `by_name` do, and UsageError where nothing is
    left of the images.
    """
    if shape.fault:
        raise UsageError(f"model {shape.model!r}: {shape.fault}.")
    smaller, shape = shape.input_size, shape.seen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_named(shape.model):
            network: nn.Module = by_name(shape, code=code, begin=begin)
        else:
            network = own(shape, code=code) if is_own(shape.model) else MODELS[shape.model](shape)
        if shape.init != "default":
            network.apply(_init_xavier if shape.init == "xavier" else _init_kaiming)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and shape.batch_norm_momentum != USUAL_MOMENTUM:
            module.momentum = shape.batch_norm_momentum  # else a network of a user's own keeps its own
    before: list[nn.Module] = [nn.AdaptiveAvgPool2d(smaller)] if smaller else []
    after: list[nn.Module] = [nn.Softmax(dim=1)] if shape.softmax else []
    if not before and not after:
        return network
    inner = list(network) if isinstance(network, nn.Sequential) and not is_own(shape.model) else [network]
    return nn.Sequential(*before, *inner, *after)


def _init_kaiming(module: nn.Module) -> None:
    """He et al. (2015) for convolutions and linear layers: normal weights that keep the variance through ReLU."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_xavier(module: nn.Module) -> None:
    """Report A: Xavier for convolutions and linear layers, a normal distribution for batch norm.

    The report does not give the normal's numbers; mean 1 and deviation 0.02 (Radford et al., 2015) are the usual ones.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
        nn.init.zeros_(module.bias)
