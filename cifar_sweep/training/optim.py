"""Optimizers of K members on the rows of a matrix of parameters, and the learning-rate schedule.

Each computes what PyTorch's of that name does, and keeps its state under PyTorch's names. On the CPU it is PyTorch's
own kernel for one row after the other, bit for bit. Elsewhere it is the same formula on all rows at once, so that the
number of calls does not grow with the members; nothing is read from the device, and nothing is summed over rows.

Making one of PyTorch's optimizers would load its compiler, which takes a process longer than most trials' first step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from cifar_sweep.config import Knobs, TrialConfig
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.device import at_once

EPS = 1e-8
BETAS = 0.9, 0.999  # of Adam
ALPHA = 0.99  # of RMSprop


def build_optimizer(configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> "Optimizer":
    """An optimizer of one kind for the members whose parameters and gradients are the rows of [K, parameters]."""
    return OPTIMIZERS[configs[0].shape.optimizer]([config.knobs for config in configs], weights, gradients)


class Optimizer(ABC):
    """What all have in common. `state` are matrices [K, parameters], and the number of steps [K]."""

    names: tuple[str, ...]  # of what is kept for each member

    def __init__(self, knobs: Sequence[Knobs], weights: Tensor, gradients: Tensor) -> None:
        self.knobs, self.weights, self.gradients = knobs, weights, gradients
        steps = torch.zeros(len(weights), device=weights.device)
        self.state = {name: steps if name == "step" else torch.zeros_like(weights) for name in self.names}
        self._rows = list(map(self._row, range(len(weights)))) if not at_once(weights.device) else []
        self._decay = self._column([each.weight_decay for each in knobs])
        self._momentum = self._column([each.momentum for each in knobs])
        self._rates = torch.zeros_like(self._momentum)
        self.set_rates([each.learning_rate for each in knobs])

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self.weights.dtype, device=self.weights.device)[:, None]

    def set_rates(self, rates: Sequence[float]) -> None:
        """Have each member go on at its learning rate."""
        self.rates = list(rates)
        self._rates.copy_(self._column(rates))  # in place: a captured step reads them there

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of every member."""
        if self._rows:
            for k, row in enumerate(self._rows):
                self._step_of_row(self.knobs[k], self.rates[k], row)
        elif any(each.weight_decay for each in self.knobs):
            self._step_of_all(torch.addcmul(self.gradients, self.weights, self._decay))
        else:
            self._step_of_all(self.gradients)

    def _row(self, k: int) -> dict[str, list[Tensor]]:
        """Member `k`'s parameters, gradients and state, as PyTorch takes them."""
        return {
            "params": [self.weights[k]],
            "grads": [self.gradients[k]],
            **{name: [value[k]] for name, value in self.state.items()},
        }

    @abstractmethod
    def _step_of_row(self, knobs: Knobs, rate: float, row: dict[str, list[Tensor]]) -> None:
        """PyTorch's own step of a member."""

    @abstractmethod
    def _step_of_all(self, gradients: Tensor) -> None:
        """The same for all, of their gradients [K, parameters] with the weight decay."""

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s state under PyTorch's names; it shares the memory of the whole. A momentum of 0 has none."""
        kept = [name for name in self.names if name != "momentum_buffer" or self.knobs[k].momentum]
        return {name: self.state[name][k] for name in kept}

    def check(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Raise StateError where `state` cannot be member `k`'s. None at all is that of one without a step."""
        mine = self.member_state(k)
        if state and any(name not in state or state[name].shape != mine[name].shape for name in mine):
            raise StateError("the optimizer's state is not one of this network")

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Take over a state of member `k` that `check` accepts."""
        for name, value in self.member_state(k).items():
            value.copy_(state[name] if state else torch.zeros_like(value))


class Sgd(Optimizer):
    """torch.optim.SGD."""

    names = ("momentum_buffer",)

    def _step_of_row(self, knobs: Knobs, rate: float, row: dict[str, list[Tensor]]) -> None:
        # From zeros the first step's momentum is its gradient, as PyTorch has it.
        buffers: list[Tensor | None] = [*row["momentum_buffer"]] if knobs.momentum else [None]
        sgd(
            row["params"], row["grads"], buffers,
            weight_decay=knobs.weight_decay, momentum=knobs.momentum, lr=rate, dampening=0.0, nesterov=False,
            maximize=False, fused=True,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        buffer = self.state["momentum_buffer"].mul_(self._momentum).add_(gradients)
        self.weights.addcmul_(buffer, self._rates, value=-1)


class Adam(Optimizer):
    """torch.optim.Adam."""

    names = ("step", "exp_avg", "exp_avg_sq")

    def _step_of_row(self, knobs: Knobs, rate: float, row: dict[str, list[Tensor]]) -> None:
        adam(
            row["params"], row["grads"], row["exp_avg"], row["exp_avg_sq"], [], row["step"],
            amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=rate, weight_decay=knobs.weight_decay, eps=EPS,
            maximize=False, fused=True,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        steps = self.state["step"].add_(1)[:, None].double()
        first, second = (1 - beta**steps for beta in BETAS)  # how much of a mean over all steps there is so far
        mean = self.state["exp_avg"].lerp_(gradients, 1 - BETAS[0])
        square = self.state["exp_avg_sq"].mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        size = square.sqrt().div_(second.sqrt().to(square.dtype)).add_(EPS)
        self.weights.addcmul_(mean / size, (self._rates / first).to(size.dtype), value=-1)


class RmsProp(Optimizer):
    """torch.optim.RMSprop."""

    names = ("step", "square_avg", "momentum_buffer")

    def _step_of_row(self, knobs: Knobs, rate: float, row: dict[str, list[Tensor]]) -> None:
        rmsprop(
            row["params"], row["grads"], row["square_avg"], [], row["momentum_buffer"], row["step"],
            lr=rate, alpha=ALPHA, eps=EPS, weight_decay=knobs.weight_decay, momentum=knobs.momentum, centered=False,
            foreach=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        self.state["step"].add_(1)
        square = self.state["square_avg"].mul_(ALPHA).addcmul_(gradients, gradients, value=1 - ALPHA)
        size = square.sqrt().add_(EPS)
        buffer = self.state["momentum_buffer"].mul_(self._momentum).addcdiv_(gradients, size)
        self.weights.addcmul_(buffer, self._rates, value=-1)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": Sgd, "adam": Adam, "rmsprop": RmsProp}


def learning_rate_at(epoch: int, knobs: Knobs) -> float:
    """The learning rate of `epoch` (the first is 1): StepLR's closed form, lr * gamma ** ((epoch - 1) // step_size)."""
    return float(knobs.learning_rate * knobs.gamma ** ((epoch - 1) // knobs.step_size))
