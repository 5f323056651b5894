"""The only training loop of the project.

A `Run` trains a group of trials of one shape, epoch by epoch, on one stream of batches. Who drives it decides which
members stay: the sweep's runner, a replay and a benchmark each do so with a loop of a few lines.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.data import ImageData
from cifar_sweep.training.dropout import seed_dropout
from cifar_sweep.training.evaluate import evaluate
from cifar_sweep.training.models import build
from cifar_sweep.training.optim import build_optimizer, learning_rate_at


class EpochInterruptedError(Exception):
    """The epoch was stopped in its middle; the run cannot go on from here, only from a stored state."""


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one member. Losses in nats, accuracies as fractions; the first epoch is 1.

    Train figures are averages over the epoch's batches while the weights moved, dropout on; validation figures are
    those of the weights after the epoch.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer a finite number."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.validation_loss))


class Member:
    """One trial in training: its network, optimizer, random stream, curve and best weights so far."""

    def __init__(self, config: TrialConfig, *, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.history: list[EpochResult] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        # A generator on a CUDA device draws its masks there: no transfer, no synchronisation.
        self.generator = torch.Generator(device if config.knobs.dropout else "cpu")
        self.generator.manual_seed(derive_seed(config.knobs.seed, "dropout"))
        plain = build(config.shape, seed=derive_seed(config.knobs.seed, "init"))
        network = seed_dropout(plain, config.knobs.dropout, generator=self.generator)
        self.network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config, self.network.parameters())
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device)

    def start_epoch(self, epoch: int) -> None:
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch, self.config.knobs)
        self.loss_sum.zero_()
        self.correct.zero_()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One optimizer step. Nothing here waits for the device."""
        loss, logits = self.loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.loss_sum += loss * len(labels)
            self.correct += (logits.argmax(dim=1) == labels).sum()

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy over the batch, in float32, and the logits [batch, classes] it came from."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.shape.precision == "bf16"):
            logits = self.network(images)
        logits = logits.float()
        return functional.cross_entropy(logits, labels), logits

    def end_epoch(self, epoch: int, *, batches: Batches, images_seen: int, started: float) -> EpochResult:
        """Validate, keep the weights if they are the best so far, and note the epoch."""
        validation = evaluate(
            self.network, batches.validation(), precision=self.config.shape.precision, device=self.device
        )
        result = EpochResult(
            epoch,
            train_loss=self.loss_sum.item() / images_seen,
            train_accuracy=self.correct.item() / images_seen,
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            learning_rate=learning_rate_at(epoch, self.config.knobs),
            seconds=time.perf_counter() - started,
        )
        if not result.diverged and result.validation_accuracy > self.best_accuracy:
            self.best_weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.history.append(result)
        return result

    @property
    def best_accuracy(self) -> float:
        """The best validation accuracy so far; -1 before the first epoch."""
        return max((result.validation_accuracy for result in self.history if not result.diverged), default=-1.0)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next epoch depends on, as named tensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        for index, parameter in enumerate(self.network.parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        curve = json.dumps([asdict(result) for result in self.history]).encode()
        tensors["history"] = torch.frombuffer(bytearray(curve), dtype=torch.uint8)
        return tensors | {"generator": self.generator.get_state()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up `state`'s tensors."""
        self.network.load_state_dict(_below("network.", tensors))
        best = _below("best.", tensors)
        self.best_weights = {name: value.to(self.device) for name, value in best.items()}
        for index, parameter in enumerate(self.network.parameters()):
            for name, value in _below(f"optimizer.{index}.", tensors).items():
                # A fused optimizer walks parameter and state in memory order: the state needs the parameter's layout.
                like = parameter.detach() if value.shape == parameter.shape else value.to(self.device)
                self.optimizer.state[parameter][name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        curve = json.loads(bytes(tensors["history"].tolist()))
        self.history = [EpochResult(**result) for result in curve]
        self.generator.set_state(tensors["generator"])


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
        if len({config.shape for config in configs}) != 1:
            raise ValueError("a group needs one or more trials, all of one shape")
        self.shape = configs[0].shape
        self.batches = Batches(
            data,
            device=device,
            train_images=self.shape.train_images,
            normalize=self.shape.normalize,
            dtype=torch.bfloat16 if self.shape.precision == "bf16" else torch.float32,
        )
        self.batches.check_batch_size(self.shape.batch_size)
        self.device = device
        self.configs = list(configs)
        self.restart()

    def restart(self) -> None:
        """Go back to before the first epoch, with all members."""
        self.members = [Member(config, device=self.device) for config in self.configs]
        self.epochs_done = 0

    def epoch(self, stop: Callable[[], bool] = lambda: False) -> list[EpochResult]:
        """Train every member for one pass over the training images, then validate. One result per member.

        Raises:
            EpochInterruptedError: `stop`, asked before every step, said yes.
        """
        started = time.perf_counter()
        epoch = self.epochs_done + 1
        for member in self.members:
            member.start_epoch(epoch)
        images_seen = 0
        for images, labels in self.batches.train(self.shape.batch_size, seed=self.shape.data_seed, epoch=epoch):
            if stop():
                raise EpochInterruptedError
            for member in self.members:
                member.step(images, labels)
            images_seen += len(labels)
        self.epochs_done = epoch
        return [
            member.end_epoch(epoch, batches=self.batches, images_seen=images_seen, started=started)
            for member in self.members
        ]

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members (positions in the last epoch's results) alone."""
        self.members = [self.members[k] for k in members]

    def member(self, k: int) -> nn.Sequential:
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

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next epoch depends on, as named tensors: a run that restores them goes on bit for bit."""
        return {f"{k}.{name}": value for k, member in enumerate(self.members) for name, value in member.state().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`, taken from a run of the same configs.

        Raises:
            KeyError, ValueError, RuntimeError: the state is not one of these configs'.
        """
        for k, member in enumerate(self.members):
            member.restore(_below(f"{k}.", state))
        self.epochs_done = len(self.members[0].history)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
