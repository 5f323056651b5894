"""Networks of a user's own: `my_module:build`, a function from a `Shape` to any ``nn.Module``."""

from functools import cache

import torch
from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.errors import UsageError, one_line
from cifar_sweep.own_model import current_folder_first, function_of


def own(shape: Shape) -> nn.Module:
    """What the function that ``shape.model`` names makes of `shape`.

    Raises:
        UsageError: there is no such function, it raised, or what it gave is no network.
    """
    function = function_of(shape.model)
    try:
        with current_folder_first():  # for what it imports only now
            network = function(shape)
    except Exception as error:
        raise UsageError(f"model {shape.model!r}: it raised {one_line(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"model {shape.model!r}: it gave a {type(network).__name__}; accepted: a torch.nn.Module from images "
            "[n, 3, 32, 32] to logits [n, classes]."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(f"model {shape.model!r}: it has no parameters to train.")
    return network


@cache
def check_outputs(shape: Shape) -> None:
    """Run two images through the network, before trials are made of it.

    Raises:
        UsageError: it cannot be built, it fails, or its outputs are not [2, classes].
    """
    with torch.random.fork_rng(devices=[]):
        network = own(shape).eval()
        try:
            with torch.no_grad():
                outputs = network(torch.zeros(2, 3, 32, 32))
        except Exception as error:
            raise UsageError(f"model {shape.model!r}: it fails on images [2, 3, 32, 32]: {one_line(error)}.") from error
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != (2, shape.classes):
        raise UsageError(
            f"model {shape.model!r}: for images [2, 3, 32, 32] it gives {found}; accepted: logits (2, {shape.classes})."
        )
