"""Networks of a user's own: `my_module:build`, a function from a `Shape` to any ``nn.Module``."""

import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from cifar_sweep.config import Shape
from cifar_sweep.errors import CifarSweepError, UsageError, nearest, one_line
from cifar_sweep.parameters import is_named, is_own
from cifar_sweep.training.models.named import by_name, file_fingerprint
from cifar_sweep.training.models.user_code import UserCode, user_code


def own(shape: Shape, *, code: str | None = None) -> nn.Module:
    """What ``shape.model`` makes of `shape`; UsageError if there is no such function or no network comes of it.

    With `code` the model of this fingerprint; StudyError if its files are others by now, and it is not loaded here.
    """
    files = user_code(shape.model, code)
    function = _function_of(shape.model, files)
    try:
        with files.current(), redirect_stdout(sys.stderr):
            network = function(shape, **shape.own)
    except Exception as error:
        raise UsageError(f"model {shape.model!r}: it raised {one_line(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"model {shape.model!r}: it gave a {type(network).__name__}; accepted: a torch.nn.Module from images "
            f"[n, 3, {shape.image_size}, {shape.image_size}] to logits [n, classes]."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(f"model {shape.model!r}: it has no parameters to train.")
    return network


def check_outputs(shape: Shape) -> None:
    """Run two images through the network; UsageError if it fails, or its outputs are not [2, classes]."""
    shape = shape.seen
    with torch.random.fork_rng(devices=[]):
        begin = shape.weights_file != "none"  # others may have to be downloaded first
        made = by_name(shape, begin=begin) if is_named(shape.model) else own(shape)
        network, like = made.eval(), (2, 3, shape.image_size, shape.image_size)
        try:
            with torch.no_grad():
                outputs = network(torch.zeros(like))
        except Exception as error:
            raise UsageError(f"model {shape.model!r}: it fails on images {list(like)}: {one_line(error)}.") from error
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != (2, shape.classes):
        raise UsageError(
            f"model {shape.model!r}: for images {list(like)} it gives {found}; accepted: logits (2, {shape.classes})."
        )


def fingerprint(model: str) -> str:
    """The fingerprint of the files of `model`, which this process knows from now on. Raises as `user_code` does."""
    return user_code(model).fingerprint


def fingerprints(names: Collection[str]) -> dict[str, str]:
    """The fingerprints of users' own models and files of weights among these. UsageError where one cannot be read."""
    files = {name: file_fingerprint(name) for name in names if name.endswith(".safetensors")}
    return files | {name: fingerprint(name) for name in names if is_own(name)}


def _function_of(model: str, code: UserCode) -> Callable[..., Any]:
    try:
        module = code.module()
    except CifarSweepError:
        raise
    except Exception as error:
        raise UsageError(f"model {model!r}: {code.path} cannot be loaded: {one_line(error)}.") from error
    attribute = model.partition(":")[2]
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"model {model!r}: {code.path} has no function {attribute}; {nearest(attribute, known)}.")
    return function  # type: ignore[no-any-return]
