"""The only training loop of the project.

A `Run` trains a group of trials of one shape, epoch by epoch, on one stream of batches. Who drives it decides which
members stay: the sweep's runner, a replay and a benchmark each do so with a loop of a few lines.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from cifar_sweep.config import TrialConfig
from cifar_sweep.curve import EpochResult
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.evaluate import evaluate
from cifar_sweep.training.group import Group, Member
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from cifar_sweep.training.optim import learning_rate_at


class EpochInterruptedError(Exception):
    """The epoch was stopped in its middle; the run cannot go on from here, only from a stored state."""


class Run:
    """The training of a group of trials of equal shape; a group of one is the plain case.

    Args:
        configs: the trials, all of one `Shape`.
        data: the images; the test set is not touched.
        device: where everything lives and runs.

    Raises:
        UsageError: the shape asks for more images than there are, or a batch larger than the training set.
        ValueError: the shapes differ, or there is no config.
    """

    def __init__(self, configs: Sequence[TrialConfig], data: ImageData, *, device: torch.device) -> None:
        self.device = device
        self.group = Group(configs, device=device)
        self.shape = self.group.shape
        self.batches = Batches(
            data,
            device=device,
            train_images=self.shape.train_images,
            validation_images=self.shape.validation_images,
            normalize=self.shape.normalize,
            dtype=torch.bfloat16 if self.shape.precision == "bf16" else torch.float32,
        )
        self.batches.check_batch_size(self.shape.batch_size)

    @property
    def epochs_done(self) -> int:
        """How many epochs lie behind the members."""
        return len(self.members[0].history)

    @property
    def members(self) -> list[Member]:
        """The trials that are still trained, in order."""
        return self.group.members

    def epoch(self, stop: Callable[[], bool] = lambda: False) -> list[EpochResult]:
        """Train every member for one pass over the training images, then validate. One result per member.

        Raises:
            EpochInterruptedError: `stop`, asked before every step, said yes.
            ValueError: some members have more epochs behind them than others.
        """
        if len({len(member.history) for member in self.members}) != 1:
            raise ValueError("the members are not at the same epoch")
        started = time.perf_counter()
        epoch = self.epochs_done + 1
        self.group.start_epoch(epoch)
        images_seen = 0
        for images, labels in self.batches.train(self.shape.batch_size, seed=self.shape.data_seed, epoch=epoch):
            if stop():
                raise EpochInterruptedError
            self.group.step(images, labels)
            images_seen += len(labels)
        return self._end_epoch(epoch, images_seen=images_seen, started=started)

    def _end_epoch(self, epoch: int, *, images_seen: int, started: float) -> list[EpochResult]:
        validations = evaluate(
            self.group.network, self.batches.validation(), precision=self.shape.precision, device=self.device
        )
        train_losses, train_accuracies = self.group.train_figures(images_seen)
        seconds = (time.perf_counter() - started) / len(self.members)
        for k, member in enumerate(self.members):
            result = EpochResult(
                epoch,
                train_loss=train_losses[k],
                train_accuracy=train_accuracies[k],
                validation_loss=validations[k].loss,
                validation_accuracy=validations[k].accuracy,
                learning_rate=learning_rate_at(epoch, member.config.knobs),
                seconds=seconds,
                group_size=len(self.members),
                group_place=k,
            )
            member.note(result, self.group.network.member_state(k))
        return [member.history[-1] for member in self.members]

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members (positions in the last epoch's results) alone."""
        self.group.keep(members)

    def member(self, k: int) -> nn.Module:
        """Member `k`'s best weights so far in a plain network on the CPU, as `build` makes it.

        Raises:
            ValueError: no epoch of this member had a finite loss.
        """
        member = self.members[k]
        if not member.best_weights:
            raise ValueError("no epoch with a finite loss yet")
        network = build(self.shape, seed=0)
        network.load_state_dict({name: value.cpu() for name, value in member.best_weights.items()})
        return network

    def state(self, k: int) -> dict[str, torch.Tensor]:
        """All that member `k`'s next epoch depends on, as named tensors; who restores them goes on bit for bit."""
        return self.group.state(k)

    def restore(self, k: int, state: dict[str, torch.Tensor]) -> None:
        """Have member `k` go on from `state`, taken from a run of the same config, in whatever group.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: the state is not one of this config's; nothing has changed.
        """
        self.group.restore(k, state)
