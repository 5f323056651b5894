"""The gradient of a 3x3 convolution's weights in Winograd's products, on processors where that is faster.

Held to AVX2, oneDNN takes two to six times as long for this gradient as for the convolution, where images are small and
channels many, as in the later blocks of a VGG (docs/LOG.md, 2026-12-01). F(3x3, 2x2) of Lavin and Gray (2015, "Fast
Algorithms for Convolutional Neural Networks", arXiv 1509.09308) takes 16 multiplications for 36, in matrix products
that are fast anywhere. Convolutions themselves, and the gradients of what goes into them, stay PyTorch's.
"""

import os
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cifar_sweep.training.device import KERNELS, least_ratio, measured_once

_FEWEST_CHANNELS = 32  # that go in: of fewer the transforms take as long as the products
_WORTHWHILE = 1.15
_CHUNK_BYTES = 2**21  # of a chunk's larger transform: it is still in a cache when the product reads it
# From three numbers to four products. A gradient's two numbers (a, b) become (a, a + b, a - b, -b).
_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_BACK = torch.kron(_G, _G).t()  # from the 16 products to the 9 weights


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int) -> Tensor | None:
    """``conv2d(x, weight, bias, padding=1, groups=groups)`` with that gradient; None where PyTorch's is no slower.

    `x` is [b, groups * in, h, w], `weight` [groups * out, in, 3, 3]: float32, on the CPU, in training, h and w even.
    """
    fits = x.dtype is weight.dtype is torch.float32 and x.device.type == "cpu"
    fits = fits and weight.requires_grad and x.shape[2] % 2 == x.shape[3] % 2 == 0
    if not fits or weight.shape[1] < _FEWEST_CHANNELS or not pays():
        return None
    return _Convolution.apply(x, weight, bias, groups)  # type: ignore[no-any-return]


@cache
def pays() -> bool:
    """Whether it is faster here than PyTorch's: measured once, and remembered in the cache folder."""
    return os.environ.get(KERNELS) != "torch" and measured_once("winograd", _speedup) >= _WORTHWHILE


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups, ctx.has_bias = groups, bias is not None
        return functional.conv2d(x, weight, bias, padding=1, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = _gradient(0, x, weight, gradient, ctx.groups) if ctx.needs_input_grad[0] else None
        pairs = zip(x.chunk(ctx.groups, dim=1), gradient.chunk(ctx.groups, dim=1), strict=True)
        of_weight = [weight_gradient(*pair) for pair in pairs]
        of_bias = gradient.sum(dim=(0, 2, 3)) if ctx.has_bias else None
        return of_x, torch.cat(of_weight) if ctx.groups > 1 else of_weight[0], of_bias, None


def _gradient(of: int, x: Tensor, weight: Tensor, gradient: Tensor, groups: int = 1) -> Tensor:
    """PyTorch's own gradient of x (0) or of the weights (1). Asked for the bias, too, it reckons all of them."""
    ones, settings = [1, 1], (False, [0, 0], groups, [of == 0, of == 1, False])
    found = torch.ops.aten.convolution_backward(gradient, x, weight, None, ones, ones, ones, *settings)
    return found[of]  # type: ignore[no-any-return]


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [out, in, 3, 3] of the weights of ``conv2d(x, weight, padding=1)``.

    `x` is [b, in, h, w], `gradient` [b, out, h, w], h and w even. It is the same to the last bit whoever is in the
    memory beside them.
    """
    inputs, high, wide, outputs = *x.shape[1:], gradient.shape[1]
    tiles = high * wide // 4
    each = max(1, _CHUNK_BYTES // (16 * tiles * max(inputs, outputs) * x.element_size()))
    products = x.new_empty(16, outputs, inputs)
    chunks = zip(torch.split(x, each), torch.split(gradient, each), strict=True)
    for at, (some, theirs) in enumerate(chunks):
        left = x.new_empty(4, 4, len(some), high // 2, wide // 2, inputs)
        right = x.new_empty(4, 4, len(some), high // 2, wide // 2, outputs)
        rows = x.new_empty(4, len(some), high // 2, wide + 2, inputs)
        _windows(functional.pad(some.permute(0, 2, 3, 1), [0, 0, 1, 1, 1, 1]), rows, dim=1)
        _windows(rows, left.transpose(0, 1), dim=3)
        rows = x.new_empty(4, len(some), high // 2, wide, outputs)
        _pairs(theirs.permute(0, 2, 3, 1), rows, dim=1)
        _pairs(rows, right.transpose(0, 1), dim=3)
        pair = right.view(16, -1, outputs).transpose(1, 2), left.view(16, -1, inputs)
        products.baddbmm_(*pair, beta=1 if at else 0)
    return (_BACK.to(x.dtype) @ products.view(16, -1)).view(3, 3, outputs, inputs).permute(2, 3, 0, 1).contiguous()


def _windows(x: Tensor, into: Tensor, *, dim: int) -> None:
    """Of each four neighbours a, b, c, d along `dim`, two apart: a - c, b + c, c - b, b - d, each a part of `into`."""
    pairs = _in_pairs(x, dim)
    a, c = (pairs.select(dim + 1, 0).narrow(dim, first, pairs.shape[dim] - 1) for first in (0, 1))
    b, d = (pairs.select(dim + 1, 1).narrow(dim, first, pairs.shape[dim] - 1) for first in (0, 1))
    torch.sub(a, c, out=into[0])
    torch.add(b, c, out=into[1])
    torch.sub(c, b, out=into[2])
    torch.sub(b, d, out=into[3])


def _pairs(x: Tensor, into: Tensor, *, dim: int) -> None:
    """Of each pair a, b along `dim`: a, a + b, a - b, -b, each a part of `into`."""
    a, b = _in_pairs(x, dim).unbind(dim + 1)
    into[0].copy_(a)
    torch.add(a, b, out=into[1])
    torch.sub(a, b, out=into[2])
    torch.neg(b, out=into[3])


def _in_pairs(x: Tensor, dim: int) -> Tensor:
    return x.unflatten(dim, (-1, 2))  # type: ignore[no-untyped-call, no-any-return]


def _speedup() -> float:
    """The time of PyTorch's gradient over ours, for a layer of the middle of a VGG."""
    x, gradient = (torch.zeros(32, 256, 4, 4).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.zeros(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)

    def seconds(ours: bool) -> float:
        start = time.thread_time()
        weight_gradient(x, gradient) if ours else _gradient(1, x, weight, gradient)
        return time.thread_time() - start

    return least_ratio(seconds)
