"""Optimizers and the learning-rate schedule."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cifar_sweep.config import Knobs, TrialConfig


def build_optimizer(configs: Sequence[TrialConfig], rows: Sequence[Tensor]) -> torch.optim.Optimizer:
    """An optimizer of one kind with a parameter group for each config, by one fused kernel where PyTorch has it."""
    groups = [{"params": [row], **_settings(config)} for config, row in zip(configs, rows, strict=True)]
    match configs[0].shape.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, fused=True)
        case "adam":
            return torch.optim.Adam(groups, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups)
        case unknown:
            raise ValueError(f"optimizer {unknown!r}")


def _settings(config: TrialConfig) -> dict[str, float]:
    knobs = config.knobs
    settings = {"lr": knobs.learning_rate, "weight_decay": knobs.weight_decay}
    return settings if config.shape.optimizer == "adam" else settings | {"momentum": knobs.momentum}


def learning_rate_at(epoch: int, knobs: Knobs) -> float:
    """The learning rate of `epoch` (the first is 1): StepLR's closed form, lr * gamma ** ((epoch - 1) // step_size)."""
    return float(knobs.learning_rate * knobs.gamma ** ((epoch - 1) // knobs.step_size))
