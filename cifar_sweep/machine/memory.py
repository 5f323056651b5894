"""The memory that a trial takes in training, and what a device has free."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from cifar_sweep.config import Shape
from cifar_sweep.training import limits
from cifar_sweep.training.batches import EVALUATION_BATCH
from cifar_sweep.training.models import build
from cifar_sweep.training.models.summary import summarize

MEMORY_FILE = Path("/proc/meminfo")


def member_bytes(shape: Shape) -> int:
    """About the memory that one trial of this shape takes in training, besides the images.

    Parameters, their gradients, two moments and the best ones so far in float32, and two copies in a step; of each
    layer's output what is kept for the backward pass, its gradient, and what a layer works in. Or, if that is more, the
    input and the output of the widest layer in validation.
    """
    parameters, outputs, widest = _sizes(replace(shape, batch_size=1, epochs=1, train_images=0, data_seed=0))
    training, validation = 10 * shape.batch_size * outputs, 8 * EVALUATION_BATCH * widest
    return 28 * parameters + max(training, validation) // (2 if shape.precision == "bf16" else 1)


@cache
def _sizes(shape: Shape) -> tuple[int, int, int]:
    """A network's parameters, how many numbers its layers give for an image, and how many the widest one gives."""
    rows = summarize(build(shape, seed=0), side=shape.image_size)
    outputs = [math.prod(row.output_shape) for row in rows]
    return sum(row.parameters for row in rows), sum(outputs), max(outputs)


def free_memory(device: torch.device) -> int | None:
    """Bytes of the device's memory that nobody uses; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit = limits.memory()
    try:
        # What a program can have: free pages, and those that only hold files.
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY_FILE.read_text(), flags=re.MULTILINE)
    except OSError:
        return limit
    known = [bytes_ for bytes_ in (limit, 1024 * int(found[1]) if found else None) if bytes_ is not None]
    return min(known, default=None)
