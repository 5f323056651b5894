"""Optimizers of K members on the rows of a matrix of parameters.

Each computes what PyTorch's of that name does, and keeps its state under PyTorch's names. On the CPU it is PyTorch's
own kernel for one row after the other, bit for bit. Elsewhere it is the same formula on all rows at once, so that the
number of calls does not grow with the members; nothing is read from the device, and nothing is summed over members.

Making one of PyTorch's optimizers would load its compiler, which takes a process longer than most trials' first step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.asgd import asgd
from torch.optim.nadam import nadam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from cifar_sweep.config import Knobs, TrialConfig
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.device import at_once

MOMENTUM_DECAY = 4e-3  # of NAdam
ASGD_START = 1e6  # steps until weights are averaged; nobody reads the average, as in PyTorch
CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it
FIRST = {"mu_product": 1.0, "mu": 1.0}  # what a state begins with; all else with zeros
NUMBERS = {"step", "mu_product", "eta", "mu"}  # one number for each member

Row = Mapping[str, list[Any]]  # a member's parameters, gradients and state, as PyTorch takes them


def build_optimizer(configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> "Optimizer":
    """An optimizer of one kind for the members whose parameters and gradients are the rows of [K, parameters]."""
    return OPTIMIZERS[configs[0].shape.optimizer](configs, weights, gradients)


class Optimizer(ABC):
    """What all have in common. `state` are matrices [K, parameters], and numbers [K]."""

    names: tuple[str, ...]  # of what is kept for each member
    eps = 1e-8  # where a member has none of its own
    decoupled = False  # whether the weight decay is no part of the gradient

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        self.knobs, self.weights, self.gradients = [each.knobs for each in configs], weights, gradients
        self.state = {name: self._began(name) for name in self.names}
        self._rows = list(map(self._row, range(len(weights)))) if not at_once(weights.device) else []
        self._decay = self._column([each.weight_decay for each in self.knobs])
        self._momentum = self._column([each.momentum for each in self.knobs])
        self._l1 = self._column([each.l1 for each in self.knobs])
        self._clip = self._column([each.gradient_clip for each in self.knobs])
        self._eps = self._to(self._each(lambda each: each.eps or self.eps))
        self._rates = torch.zeros_like(self._momentum)
        self.set_rates([each.learning_rate for each in self.knobs])

    def _began(self, name: str) -> Tensor:
        shape = self.weights.shape[:1] if name in NUMBERS else self.weights.shape
        dtype = torch.float32 if name in NUMBERS else self.weights.dtype
        return torch.full(shape, FIRST.get(name, 0.0), dtype=dtype, device=self.weights.device)

    def _column(self, values: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype or self.weights.dtype, device=self.weights.device)[:, None]

    def _each(self, of: Callable[[Knobs], float]) -> float | Tensor:
        """A coefficient: one number where all members agree, else a column [K, 1] in float64."""
        values = [of(knobs) for knobs in self.knobs]
        return values[0] if len(set(values)) == 1 else self._column(values, torch.float64)

    def _to(self, coefficient: float | Tensor) -> Any:
        """A coefficient in the arithmetic of the parameters."""
        return coefficient.to(self.weights.dtype) if isinstance(coefficient, Tensor) else coefficient

    def set_rates(self, rates: Sequence[float]) -> None:
        """Have each member go on at its learning rate."""
        self.rates = list(rates)
        self._rates.copy_(self._column(rates))  # in place: a captured step reads them there

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of every member."""
        if self._rows:
            for k, row in enumerate(self._rows):
                self._limit_row(self.knobs[k], *row["params"], *row["grads"])
                self._step_of_row(self.knobs[k], self.rates[k], row)
            return
        self._limit_all()
        if not any(each.weight_decay for each in self.knobs):
            self._step_of_all(self.gradients)
        elif self.decoupled:
            self.weights.mul_(1 - self._rates * self._decay)
            self._step_of_all(self.gradients)
        else:
            self._step_of_all(torch.addcmul(self.gradients, self.weights, self._decay))

    def _limit_row(self, knobs: Knobs, weights: Tensor, gradient: Tensor) -> None:
        """Add the slope of the L1 penalty to a member's gradient; then shorten it to its greatest length."""
        if knobs.l1:
            gradient.add_(weights.sign(), alpha=knobs.l1)
        if knobs.gradient_clip:
            gradient.mul_((knobs.gradient_clip / (torch.linalg.vector_norm(gradient) + CLIP_EPS)).clamp(max=1))

    def _limit_all(self) -> None:
        if any(each.l1 for each in self.knobs):
            self.gradients.addcmul_(self.weights.sign(), self._l1)
        if any(each.gradient_clip for each in self.knobs):
            norms = torch.linalg.vector_norm(self.gradients, dim=1, keepdim=True)
            shares = (self._clip / (norms + CLIP_EPS)).clamp(max=1)
            self.gradients.mul_(torch.where(self._clip > 0, shares, 1))

    def _row(self, k: int) -> Row:
        return {
            "params": [self.weights[k]],
            "grads": [self.gradients[k]],
            **{name: [value[k]] for name, value in self.state.items()},
        }

    @abstractmethod
    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        """PyTorch's own step of a member."""

    @abstractmethod
    def _step_of_all(self, gradients: Tensor) -> None:
        """The same for all, of their gradients [K, parameters] with the weight decay."""

    def _steps(self) -> Tensor:
        """The numbers of steps with this one, in float64 [K, 1]."""
        return self.state["step"].add_(1)[:, None].double()

    def _mean_square(self, name: str, values: Tensor, keep: float | Tensor) -> Tensor:
        """The running mean of squares `name` with these values in it. Of a column the last bit may be another."""
        square = self.state[name].mul_(self._to(keep))
        if isinstance(keep, Tensor):
            return square.addcmul_(values * values, self._to(1 - keep))
        return square.addcmul_(values, values, value=1 - keep)

    def _has(self, _knobs: Knobs, _name: str) -> bool:
        """Whether a member with these coefficients has this state."""
        return True

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Member `k`'s state under PyTorch's names; it shares the memory of the whole. A momentum of 0 has none."""
        return {name: value[k] for name, value in self.state.items() if self._has(self.knobs[k], name)}

    def check(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Raise StateError where `state` cannot be member `k`'s. None at all is that of one without a step."""
        mine = self.member_state(k)
        if state and any(name not in state or state[name].shape != mine[name].shape for name in mine):
            raise StateError("the optimizer's state is not one of this network")

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Take over a state of member `k` that `check` accepts."""
        for name, value in self.member_state(k).items():
            value.copy_(state[name] if state else torch.full_like(value, FIRST.get(name, 0.0)))


class Sgd(Optimizer):
    """torch.optim.SGD. The number of steps counts where there is dampening, which spares the first."""

    names = ("step", "momentum_buffer")
    nesterov = False

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        super().__init__(configs, weights, gradients)
        self._dampening = self._each(lambda each: each.dampening if each.momentum else 0.0)

    def _has(self, knobs: Knobs, name: str) -> bool:
        return bool(knobs.momentum and (name == "momentum_buffer" or knobs.dampening))

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        # From zeros the first step's momentum is its gradient, as PyTorch has it.
        buffers: list[Tensor | None] = [*row["momentum_buffer"]] if knobs.momentum else [None]
        [step] = row["step"]
        sgd(
            row["params"], row["grads"], buffers,
            weight_decay=knobs.weight_decay, momentum=knobs.momentum, lr=rate,
            dampening=knobs.dampening if knobs.dampening and step else 0.0,
            nesterov=self.nesterov and knobs.momentum > 0, maximize=False, fused=True,
        )  # fmt: skip
        step += 1

    def _step_of_all(self, gradients: Tensor) -> None:
        buffer = self.state["momentum_buffer"].mul_(self._momentum)
        if any(each.dampening for each in self.knobs):
            later = self.state["step"].clamp(max=1)[:, None].double()
            self.state["step"].add_(1)
            buffer.addcmul_(gradients, self._to(1 - later * self._dampening))
        else:
            buffer.add_(gradients)
        moved = torch.addcmul(gradients, buffer, self._momentum) if self.nesterov else buffer
        self.weights.addcmul_(moved, self._rates, value=-1)


class Nesterov(Sgd):
    """torch.optim.SGD with ``nesterov=True``."""

    nesterov = True


class Adam(Optimizer):
    """torch.optim.Adam."""

    names: tuple[str, ...] = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        if configs[0].shape.amsgrad:
            self.names = (*self.names, "max_exp_avg_sq")
        super().__init__(configs, weights, gradients)
        self._beta1, self._beta2 = self._each(lambda each: each.beta1), self._each(lambda each: each.beta2)

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        most = row.get("max_exp_avg_sq", [])
        adam(
            row["params"], row["grads"], row["exp_avg"], row["exp_avg_sq"], most, row["step"],
            amsgrad=bool(most), beta1=knobs.beta1, beta2=knobs.beta2, lr=rate, weight_decay=knobs.weight_decay,
            eps=knobs.eps or self.eps, maximize=False, fused=True, decoupled_weight_decay=self.decoupled,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        steps = self._steps()
        # How much of a mean over all steps there is so far.
        first, second = 1 - self._beta1**steps, 1 - self._beta2**steps
        mean = self.state["exp_avg"].lerp_(gradients, self._to(1 - self._beta1))
        square = self._mean_square("exp_avg_sq", gradients, self._beta2)
        if "max_exp_avg_sq" in self.state:
            square = torch.maximum(self.state["max_exp_avg_sq"], square, out=self.state["max_exp_avg_sq"])
        size = square.sqrt().div_(second.sqrt().to(square.dtype)).add_(self._eps)
        self.weights.addcmul_(mean / size, (self._rates / first).to(size.dtype), value=-1)


class AdamW(Adam):
    """torch.optim.AdamW."""

    decoupled = True


class NAdam(Adam):
    """torch.optim.NAdam."""

    names = ("step", "mu_product", "exp_avg", "exp_avg_sq")

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        nadam(
            row["params"], row["grads"], row["exp_avg"], row["exp_avg_sq"], row["mu_product"], row["step"],
            beta1=knobs.beta1, beta2=knobs.beta2, lr=rate, weight_decay=knobs.weight_decay,
            momentum_decay=MOMENTUM_DECAY, eps=knobs.eps or self.eps, foreach=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        steps = self._steps()
        now, after = (self._beta1 * (1 - 0.5 * 0.96 ** (at * MOMENTUM_DECAY)) for at in (steps, steps + 1))
        product = self.state["mu_product"].mul_(now.float()[:, 0])[:, None].double()
        mean = self.state["exp_avg"].lerp_(gradients, self._to(1 - self._beta1))
        square = self._mean_square("exp_avg_sq", gradients, self._beta2)
        size = square.div(self._to(1 - self._beta2**steps)).sqrt_().add_(self._eps)
        of_gradient, of_mean = (1 - now) / (1 - product), after / (1 - product * after)
        moved = (gradients * self._to(of_gradient)).addcmul_(mean, self._to(of_mean))
        self.weights.addcmul_(moved.div_(size), self._rates, value=-1)


class Adamax(Adam):
    """torch.optim.Adamax."""

    names = ("step", "exp_avg", "exp_inf")

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        adamax(
            row["params"], row["grads"], row["exp_avg"], row["exp_inf"], row["step"],
            eps=knobs.eps or self.eps, beta1=knobs.beta1, beta2=knobs.beta2, lr=rate, weight_decay=knobs.weight_decay,
            foreach=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        first = 1 - self._beta1 ** self._steps()
        mean = self.state["exp_avg"].lerp_(gradients, self._to(1 - self._beta1))
        size = self.state["exp_inf"].mul_(self._to(self._beta2))
        torch.maximum(size, gradients.abs().add_(self._eps), out=size)
        self.weights.addcmul_(mean / size, (self._rates / first).to(size.dtype), value=-1)


class RmsProp(Optimizer):
    """torch.optim.RMSprop."""

    names = ("step", "square_avg", "momentum_buffer")

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        super().__init__(configs, weights, gradients)
        self._alpha = self._each(lambda each: each.alpha)

    def _has(self, knobs: Knobs, name: str) -> bool:
        return name != "momentum_buffer" or bool(knobs.momentum)

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        rmsprop(
            row["params"], row["grads"], row["square_avg"], [], row["momentum_buffer"], row["step"],
            lr=rate, alpha=knobs.alpha, eps=knobs.eps or self.eps, weight_decay=knobs.weight_decay,
            momentum=knobs.momentum, centered=False, foreach=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        self.state["step"].add_(1)
        size = self._mean_square("square_avg", gradients, self._alpha).sqrt().add_(self._eps)
        buffer = self.state["momentum_buffer"].mul_(self._momentum).addcdiv_(gradients, size)
        self.weights.addcmul_(buffer, self._rates, value=-1)


class Adagrad(Optimizer):
    """torch.optim.Adagrad."""

    names = ("step", "sum")
    eps = 1e-10

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        adagrad(
            row["params"], row["grads"], row["sum"], row["step"],
            lr=rate, weight_decay=knobs.weight_decay, lr_decay=0.0, eps=knobs.eps or self.eps, maximize=False,
            fused=True,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        self.state["step"].add_(1)
        size = self.state["sum"].addcmul_(gradients, gradients).sqrt().add_(self._eps)
        self.weights.addcmul_(gradients / size, self._rates, value=-1)


class Adadelta(Optimizer):
    """torch.optim.Adadelta."""

    names = ("step", "square_avg", "acc_delta")
    eps = 1e-6

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        super().__init__(configs, weights, gradients)
        self._rho = self._each(lambda each: each.rho)

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        adadelta(
            row["params"], row["grads"], row["square_avg"], row["acc_delta"], row["step"],
            lr=rate, rho=knobs.rho, eps=knobs.eps or self.eps, weight_decay=knobs.weight_decay, maximize=False,
            foreach=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        self.state["step"].add_(1)
        size = self._mean_square("square_avg", gradients, self._rho).add(self._eps).sqrt_()
        moved = self.state["acc_delta"].add(self._eps).sqrt_().div_(size).mul_(gradients)
        self._mean_square("acc_delta", moved, self._rho)
        self.weights.addcmul_(moved, self._rates, value=-1)


class Asgd(Optimizer):
    """torch.optim.ASGD; what it averages is kept, and validated by nobody, as there."""

    names = ("step", "eta", "mu", "ax")

    def __init__(self, configs: Sequence[TrialConfig], weights: Tensor, gradients: Tensor) -> None:
        super().__init__(configs, weights, gradients)
        self._shrink = self._each(lambda each: each.asgd_decay)
        self._power = self._each(lambda each: each.asgd_power)

    def _step_of_row(self, knobs: Knobs, rate: float, row: Row) -> None:
        [step], [eta] = row["step"], row["eta"]
        if not step:
            eta.fill_(rate)
        asgd(
            row["params"], row["grads"], row["ax"], row["mu"], row["eta"], row["step"],
            lambd=knobs.asgd_decay, lr=rate, t0=ASGD_START, alpha=knobs.asgd_power,
            weight_decay=knobs.weight_decay, foreach=False, maximize=False, differentiable=False, capturable=False,
            has_complex=False,
        )  # fmt: skip

    def _step_of_all(self, gradients: Tensor) -> None:
        steps = self._steps()
        eta, mu = self.state["eta"][:, None].double(), self.state["mu"][:, None]
        eta = torch.where(steps == 1, self._rates.float().double(), eta)
        self.weights.mul_(self._to(1 - self._shrink * eta)).addcmul_(gradients, self._to(eta), value=-1)
        average = self.state["ax"]
        average.add_((self.weights - average).mul_(mu.to(average.dtype)))
        self.state["eta"].copy_((self._rates / (1 + self._shrink * self._rates * steps) ** self._power)[:, 0])
        self.state["mu"].copy_((1 / (steps - ASGD_START).clamp_min(1))[:, 0])


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd, "nesterov": Nesterov, "adam": Adam, "adamw": AdamW, "nadam": NAdam, "adamax": Adamax,
    "adagrad": Adagrad, "adadelta": Adadelta, "rmsprop": RmsProp, "asgd": Asgd,
}  # fmt: skip
