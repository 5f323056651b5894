"""Named tensors as safetensors files."""

import hashlib
from pathlib import Path

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


def load(path: Path, *, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of `path`, onto the CPU. StateError if it is not whole, or its checksum is not `sha256`."""
    content = path.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise StateError(f"{path}: the file's checksum is not the one noted when it was written")
    try:
        return unpack(content)
    except StateError as error:
        raise StateError(f"{path}: {error}") from error
