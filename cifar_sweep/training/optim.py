"""Optimizers and the learning-rate schedule."""

from collections.abc import Iterable

import torch
from torch import nn

from cifar_sweep.config import Knobs, TrialConfig


def build_optimizer(config: TrialConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of `config`, one fused kernel per step where PyTorch has one."""
    knobs = config.knobs
    lr, decay = knobs.learning_rate, knobs.weight_decay
    match config.shape.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=knobs.momentum, weight_decay=decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=lr, momentum=knobs.momentum, weight_decay=decay)
        case unknown:
            raise ValueError(f"optimizer {unknown!r}")


def learning_rate_at(epoch: int, knobs: Knobs) -> float:
    """The learning rate of `epoch` (the first is 1): StepLR's closed form, lr * gamma ** ((epoch - 1) // step_size)."""
    return float(knobs.learning_rate * knobs.gamma ** ((epoch - 1) // knobs.step_size))
