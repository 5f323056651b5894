"""Dropout whose masks come from a trial's own generator, so that they depend on nothing else in the process."""

import torch
from torch import nn


class SeededDropout(nn.Module):
    """Dropout (of whole channels, where `channelwise`) at `rate`, with masks drawn from `generator`."""

    def __init__(self, rate: float, *, channelwise: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.rate = rate
        self.channelwise = channelwise
        self.generator = generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = 1 - self.rate
        shape = (x.shape[0], x.shape[1], *(1,) * (x.dim() - 2)) if self.channelwise else x.shape
        mask = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(kept, generator=self.generator)
        return x * mask.div_(kept)


def seed_dropout(network: nn.Sequential, rate: float, *, generator: torch.Generator) -> nn.Sequential:
    """The same layers with every dropout layer replaced by a `SeededDropout` at `rate`; names do not change."""
    return nn.Sequential(
        *(
            SeededDropout(rate, channelwise=isinstance(layer, nn.Dropout2d), generator=generator)
            if isinstance(layer, (nn.Dropout, nn.Dropout2d))
            else layer
            for layer in network
        )
    )
