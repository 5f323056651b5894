"""Named tensors as safetensors files."""

import safetensors.torch
import torch
from safetensors import SafetensorError


class StateError(Exception):
    """What is stored cannot be restored: it is missing, damaged, or of another config."""


def pack(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as a safetensors file."""
    # A clone in the standard layout: safetensors refuses channels-last strides and shared storage.
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    return safetensors.torch.save(plain)


def unpack(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU; StateError if it is not a whole one."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"not a whole safetensors file ({error})") from error
