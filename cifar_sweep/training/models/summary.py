"""What a network is made of, layer by layer."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One layer: its class, what it does, its output for one image (without the batch axis), its trained numbers."""

    name: str
    detail: str
    output_shape: tuple[int, ...]
    parameters: int


def summarize(network: nn.Module, *, side: int = 32) -> list[LayerRow]:
    """One row per layer, from one zero image [1, 3, side, side] on the network's own device.

    Layers are the modules that have no modules below them, in the order in which the image comes to them. Leaves the
    network as it was: no gradient, no batch norm statistics, every layer's training flag put back.
    """
    counted = [(layer, shape, sum(map(torch.numel, layer.parameters()))) for layer, shape in _visits(network, side)]
    return [LayerRow(type(layer).__name__, _detail(layer), shape, count) for layer, shape, count in counted]


def macs(network: nn.Module, *, side: int = 32) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image [3, side, side], forward."""
    return sum(
        layer.weight.numel() * (math.prod(shape[1:]) if isinstance(layer, nn.Conv2d) else 1)
        for layer, shape in _visits(network, side)
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    )


def _visits(network: nn.Module, side: int) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Each layer that an image comes to, with the shape of its output; what is not one tensor has none."""
    found: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        found.append((layer, tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()))

    like = next(network.parameters())
    modes = [(module, module.training) for module in network.modules()]
    hooks = [module.register_forward_hook(note) for module in network.modules() if not any(module.children())]
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return found


_DETAILS: dict[type[nn.Module], str] = {
    nn.Linear: "{0.in_features} -> {0.out_features}",
    nn.BatchNorm2d: "{0.num_features} channels",
    nn.BatchNorm1d: "{0.num_features} features",
    nn.MaxPool2d: "{0.kernel_size}x{0.kernel_size}",
    nn.Dropout2d: "rate {0.p:g}, whole channels",
    nn.Dropout: "rate {0.p:g}",
}


def _detail(layer: nn.Module) -> str:
    """What the layer's class does not say; empty where it says all."""
    if isinstance(layer, nn.Conv2d):
        padding = f"padding {layer.padding[0]}" if any(layer.padding) else "no padding"
        mode = "" if layer.padding_mode == "zeros" else f", {layer.padding_mode}"
        kernel = f"{layer.kernel_size[0]}x{layer.kernel_size[1]}"
        return f"{layer.in_channels} -> {layer.out_channels}, {kernel}, {padding}{mode}"
    return next((words.format(layer) for kind, words in _DETAILS.items() if isinstance(layer, kind)), "")
