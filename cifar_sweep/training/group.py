"""A group of trials in training: one network, one optimizer, and what each member has come to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.curve import EpochResult, best_epoch
from cifar_sweep.training.apart import Apart
from cifar_sweep.training.fuse import Fused, can_fuse
from cifar_sweep.training.models import build
from cifar_sweep.training.optim import build_optimizer, learning_rate_at
from cifar_sweep.training.rows import Masks, Rows


class Member:
    """One trial of a group: its config, its random stream, its curve, and its best weights so far."""

    def __init__(self, config: TrialConfig, *, device: torch.device) -> None:
        self.config = config
        self.history: list[EpochResult] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        # A generator on a CUDA device draws its masks there: no transfer, no synchronisation.
        self.generator = torch.Generator(device if config.knobs.dropout else "cpu")
        self.generator.manual_seed(derive_seed(config.knobs.seed, "dropout"))

    @property
    def masks(self) -> Masks:
        """Its dropout."""
        return Masks(self.config.knobs.dropout, self.generator)

    def note(self, result: EpochResult, weights: Mapping[str, torch.Tensor]) -> None:
        """Note an epoch, and keep the weights if they are the best so far; of equals the first."""
        self.history.append(result)
        if best_epoch(self.history) is result:
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}


class Group:
    """Trials of equal shape, trained as one network with a member axis; one trial is the plain case.

    Args:
        configs: the trials, all of one `Shape`.
        device: where everything lives and runs.

    Raises:
        ValueError: the shapes differ, or there is no config.
    """

    def __init__(self, configs: Sequence[TrialConfig], *, device: torch.device) -> None:
        if len({config.shape for config in configs}) != 1:
            raise ValueError("a group needs one or more trials, all of one shape")
        self.shape = configs[0].shape
        self.device = device
        self.members = [Member(config, device=device) for config in configs]
        networks = [build(self.shape, seed=derive_seed(config.knobs.seed, "init")) for config in configs]
        dtype = torch.bfloat16 if self.shape.precision == "bf16" else None
        masks = [member.masks for member in self.members]
        together: Rows
        if can_fuse(networks[0]):
            together = Fused([cast(nn.Sequential, network) for network in networks], masks, dtype=dtype)
        else:
            together = Apart(networks, masks, dtype=dtype)
        self.network = together.to(device=device)
        self._prepare_optimizer()

    def _prepare_optimizer(self) -> None:
        """An optimizer with a parameter group for each member, which holds the member's row of the parameters."""
        self._rows = [nn.Parameter(row, requires_grad=False) for row in self.network.weights]
        for row, gradient in zip(self._rows, self.network.gradients, strict=True):
            row.grad = gradient
        self.optimizer = build_optimizer([member.config for member in self.members], self._rows)
        self._loss_sum = torch.zeros(len(self.members), device=self.device)
        self._correct = torch.zeros(len(self.members), device=self.device)

    def start_epoch(self, epoch: int) -> None:
        """Set the members' learning rates of this epoch."""
        self.network.train()
        for member, group in zip(self.members, self.optimizer.param_groups, strict=True):
            group["lr"] = learning_rate_at(epoch, member.config.knobs)
        self._loss_sum.zero_()
        self._correct.zero_()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One optimizer step of every member. Nothing here waits for the device."""
        losses, logits = self.losses(images, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.network.gather_gradients()
        self.optimizer.step()
        with torch.no_grad():
            self._loss_sum += losses * len(labels)
            self._correct += (logits.argmax(dim=2) == labels).sum(dim=1)

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each member's mean cross-entropy over the batch [K], in float32, and the logits [K, batch, classes]."""
        logits = self.network(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        return each.view(len(logits), -1).mean(dim=1), logits

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        if list(members) == list(range(len(self.members))):
            return
        states = [self.optimizer.state[self._rows[k]] for k in members]
        self.members = [self.members[k] for k in members]
        self.network.keep(members)
        self._prepare_optimizer()
        self.optimizer.state.update(zip(self._rows, states, strict=True))

    def train_figures(self, images_seen: int) -> tuple[list[float], list[float]]:
        """The members' mean losses and accuracies since the epoch's start, read from the device at once."""
        losses, accuracies = (torch.stack([self._loss_sum, self._correct]) / images_seen).tolist()
        return losses, accuracies

    def state(self, k: int) -> dict[str, torch.Tensor]:
        """All that member `k`'s next epoch depends on, as named tensors, whatever group it is in."""
        member = self.members[k]
        tensors = {f"network.{name}": value for name, value in self.network.member_state(k).items()}
        tensors |= {f"best.{name}": value for name, value in member.best_weights.items()}
        known = self.optimizer.state.get(self._rows[k], {})
        tensors |= {f"optimizer.{name}": value for name, value in known.items() if isinstance(value, torch.Tensor)}
        curve = json.dumps([asdict(result) for result in member.history]).encode()
        tensors["history"] = torch.frombuffer(bytearray(curve), dtype=torch.uint8)
        return tensors | {"generator": member.generator.get_state()}

    def restore(self, k: int, tensors: dict[str, torch.Tensor]) -> None:
        """Take up `state`'s tensors; all of them or, where they are no good, none.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: they are not of this network.
        """
        member = self.members[k]
        history = [EpochResult(**result) for result in json.loads(bytes(tensors["history"].tolist()))]
        best, known = below("best.", tensors), below("optimizer.", tensors)
        if best and best.keys() != self.network.member_state(k).keys():
            raise ValueError("the best weights are not those of this network")
        if any(value.dim() and value.shape != self._rows[k].shape for value in known.values()):
            raise ValueError("the optimizer's state is not one of this network")
        torch.Generator(member.generator.device).set_state(tensors["generator"])  # raises where it is none
        self.network.load_member_state(k, below("network.", tensors))
        member.generator.set_state(tensors["generator"])
        member.best_weights = {name: value.to(self.device) for name, value in best.items()}
        self.optimizer.state[self._rows[k]] = {name: value.to(self.device) for name, value in known.items()}
        member.history = history


def below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
