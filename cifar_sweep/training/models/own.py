"""Networks of a user's own: `my_module:build`, a function from a `Shape` to any ``nn.Module``."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar_sweep.config import Shape, is_own
from cifar_sweep.errors import CifarSweepError, UsageError, nearest, one_line


def own(shape: Shape) -> nn.Module:
    """What ``shape.model`` makes of `shape`; UsageError if there is no such function or no network comes of it."""
    function = _function_of(shape.model)
    try:
        with current_folder_first():  # for what it imports only now
            network = function(shape)
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


@cache
def check_outputs(shape: Shape) -> None:
    """Run two images through the network; UsageError if it fails, or its outputs are not [2, classes]."""
    with torch.random.fork_rng(devices=[]):
        network, like = own(shape).eval(), (2, 3, shape.image_size, shape.image_size)
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


def source_of(model: str) -> Path:
    """The file that holds the function `model`; UsageError if there is no such module, or it is not a Python file."""
    name = model.partition(":")[0]
    with current_folder_first():
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # a package above it is missing, or is no package
            found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise UsageError(
            f"model {model!r}: there is no module {name} in {Path.cwd()} or among the installed ones; accepted: a "
            "Python file as my_module:build, which lies where the command is run."
        )
    return Path(found.origin)


def fingerprint(model: str) -> str:
    """A short hash of the file that holds `model`, not of what it imports; UsageError if the file cannot be read."""
    path = source_of(model)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"model {model!r}: {path} cannot be read: {error.strerror}.") from None


def fingerprints(models: Iterable[str]) -> dict[str, str]:
    """The fingerprints of those of `models` that are users' own. Raises UsageError as `fingerprint` does."""
    return {model: fingerprint(model) for model in models if is_own(model)}


def _function_of(model: str) -> Callable[..., Any]:
    """The function that `model` names, from its module as it was when this process loaded it."""
    path = source_of(model)
    name, _, attribute = model.partition(":")
    try:
        with current_folder_first():
            module = importlib.import_module(name)
    except CifarSweepError:
        raise
    except Exception as error:
        raise UsageError(f"model {model!r}: {path} cannot be loaded: {one_line(error)}.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"model {model!r}: {path} has no function {attribute}; {nearest(attribute, known)}.")
    return function  # type: ignore[no-any-return]


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Modules are found in the current folder first; a script's own folder is where Python looks otherwise."""
    folder = str(Path.cwd())
    importlib.invalidate_caches()  # a file may be younger than what was cached of its folder
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
