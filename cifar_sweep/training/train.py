"""The only training loop of the project.

A `Run` trains a group of trials of one shape, epoch by epoch. The caller decides which members stay.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn

from cifar_sweep.config import Shape, TrialConfig, derive_seed
from cifar_sweep.curve import METRICS, EpochResult, best_epoch
from cifar_sweep.errors import one_line
from cifar_sweep.schedules import learning_rate_at
from cifar_sweep.training import metrics
from cifar_sweep.training.apart import Apart
from cifar_sweep.training.augmentation import augmented
from cifar_sweep.training.averages import Averages
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.checkpoint import StateError
from cifar_sweep.training.device import DTYPES, at_once, is_out_of_memory
from cifar_sweep.training.fuse import Fused, can_fuse
from cifar_sweep.training.graph import Replay, is_replayed
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.losses import Loss, class_weights, losses_of
from cifar_sweep.training.models import build
from cifar_sweep.training.optim import build_optimizer
from cifar_sweep.training.part_rates import PartRates
from cifar_sweep.training.rows import Masks, Rows, Stream


class EpochInterruptedError(Exception):
    """The epoch was stopped in its middle. The run cannot go on from here, only from a stored state."""


class Member:
    """One trial of a run: its config, its random stream, its curve, and the weights of its best epoch so far.

    `correct` says for each validation image, in their fixed order, whether these weights name it rightly (uint8 [n]);
    it is empty where that is not known.
    """

    def __init__(self, config: TrialConfig, *, device: torch.device) -> None:
        self.config = config
        self.history: list[EpochResult] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.correct = torch.empty(0, dtype=torch.uint8)
        self.generator: torch.Generator | Stream = Stream(device)
        if not at_once(device):
            self.generator = torch.Generator().manual_seed(derive_seed(config.knobs.seed, "dropout"))

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, of which those before are in the curve."""
        losses = [result.validation_loss for result in self.history]
        return learning_rate_at(epoch, self.config.complete(), losses)

    def seed_of(self, epoch: int) -> int:
        """The seed of the masks of an epoch, on a device where they follow from it alone."""
        return derive_seed(self.config.knobs.seed, "dropout", epoch)

    @property
    def is_over(self) -> bool:
        """Whether it has all its epochs, or as many without a better one as it has patience for."""
        shape, patience, done = self.config.shape, self.config.knobs.patience, len(self.history)
        best = best_epoch(self.history, shape.metric)
        return done >= shape.epochs or bool(patience and best and done - best.epoch >= patience)

    def note(self, result: EpochResult, weights: Mapping[str, torch.Tensor], correct: torch.Tensor) -> None:
        """Add an epoch to the curve. The weights, and what they name rightly, are kept if it is the best so far."""
        self.history.append(result)
        if best_epoch(self.history, self.config.shape.metric) is result:
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
            self.correct = correct.clone()


class Run:
    """The training of one or more trials of equal shape, as one network with a member axis.

    `configs` are the trials, all of one `Shape`, else ValueError. Of `data` the test set is not touched; None is for
    single steps, to time them. UsageError if the shape asks for more images than there are, or a batch larger than the
    training set. `members` are the trials that are still trained, in order; `network` are the networks of all of them.
    """

    batches: Batches  # not there without data

    def __init__(
        self,
        configs: Sequence[TrialConfig],
        data: ImageData | None,
        *,
        device: torch.device,
        code: str | None = None,  # the fingerprint of a user's own model, as `build` takes it
    ) -> None:
        if len({config.shape for config in configs}) != 1:
            raise ValueError("a run needs one or more trials, all of one shape")
        self.shape = configs[0].shape
        self.device, self.code = device, code
        self.members = [Member(config, device=device) for config in configs]
        self._class_weights = class_weights(self.shape, lambda: torch.ones(self.shape.classes))
        if data is not None:
            counts = {"train_images": self.shape.train_images, "validation_images": self.shape.validation_images}
            dtype = DTYPES[self.shape.precision]
            self.batches = Batches(data, device=device, normalize=self.shape.normalize, dtype=dtype, **counts)
            self.batches.check_batch_size(self.shape.batch_size)
            self._class_weights = class_weights(self.shape, self.batches.class_counts)
        self.network = _network(self.shape, self.members, code).to(device=device)
        self.prepare_optimizer()

    @property
    def epochs_done(self) -> int:
        """The number of epochs that the members have been trained for."""
        return len(self.members[0].history)

    def epoch(self, stop: Callable[[], bool] = lambda: False) -> list[EpochResult]:
        """Train every member for one pass over the training images, then validate. One result per member.

        Raises EpochInterruptedError when `stop`, asked before every step, says yes; ValueError if epochs differ.
        """
        if len({len(member.history) for member in self.members}) != 1:
            raise ValueError("the members are not at the same epoch")
        started = time.perf_counter()
        epoch = self.epochs_done + 1
        if epoch == 1:
            self._begin()
        self.start_epoch(epoch)
        images_seen = 0
        given = {"seed": self.shape.data_seed, "epoch": epoch}
        for images, labels in self.batches.train(self.shape.batch_size, **given, change=augmented(self.shape, epoch)):
            if stop():
                raise EpochInterruptedError
            self.step(images, labels)
            images_seen += len(labels)
        return self._end_epoch(epoch, images_seen=images_seen, started=started)

    def _begin(self) -> None:
        """Give the members pretrained weights, where the shape says so: who goes on from a state needs none."""
        if self.shape.pretrained or self.shape.weights_file != "none":
            for k, member in enumerate(self.members):
                network = build(self.shape, seed=_init_seed(member), code=self.code, begin=True)
                self.network.load_member_state(k, network.state_dict())

    def start_epoch(self, epoch: int) -> None:
        """Set the members' learning rates of this epoch, and begin the streams of its masks."""
        self.network.train()
        if self.averages:
            self.averages.begun = epoch > 1
        self._part_rates.set_epoch(epoch)
        self.optimizer.set_rates([member.learning_rate(epoch) for member in self.members])
        seeds: dict[Stream, list[int]] = {}
        for member in self.members:
            if isinstance(member.generator, Stream):
                seeds.setdefault(member.generator, []).append(member.seed_of(epoch))
        for stream, each in seeds.items():
            stream.seed(each)
        self._loss_sum.zero_()
        self._correct.zero_()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One optimizer step of every member. Nothing waits for the device, but for the capture of a graph."""
        if self._replay:
            self._replay(self._step, images, labels)
        else:
            self._step(images, labels)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        losses, logits = self.losses(images, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.network.gather_gradients()
        before = self._part_rates.before()
        self.optimizer.step()
        self._part_rates.after(before)
        if self.averages:
            self.averages.step()
        with torch.no_grad():
            self._loss_sum += losses * len(labels)
            classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
            self._correct += (logits.argmax(dim=2) == classes).sum(dim=1)

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each member's mean loss over the batch [K], in float32, and the logits [K, batch, classes]."""
        logits = self.network(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self._loss(logits, labels), logits

    def _end_epoch(self, epoch: int, *, images_seen: int, started: float) -> list[EpochResult]:
        with self.averages.shown() if self.averages else nullcontext():
            losses, accuracies, others, correct = self._validated()
            train_losses, train_accuracies = (torch.stack([self._loss_sum, self._correct]) / images_seen).tolist()
            seconds = (time.perf_counter() - started) / len(self.members)
            for k, member in enumerate(self.members):
                figures = train_losses[k], train_accuracies[k], losses[k], accuracies[k]
                more: dict[str, Any] = {name: each[k] for name, each in others.items()}
                more |= {"group_size": len(self.members), "group_place": k}
                result = EpochResult(epoch, *figures, self.optimizer.rates[k], seconds, **more)
                member.note(result, self.network.member_state(k), correct[k])
        return [member.history[-1] for member in self.members]

    def _validated(self) -> tuple[list[float], list[float], dict[str, list[float]], torch.Tensor]:
        """The members' mean losses (nats) and accuracies over the validation images, read from the device at once.

        Losses are cross-entropies, whatever members are trained by. Also, by its name, the figure that they are chosen
        by where that is another one, and which images each member names rightly, on the device: uint8 [K, images].
        """
        self.network.eval()
        losses, correct, counts = [], [], []
        with torch.no_grad():
            for images, labels in self.batches.validation():
                logits = self.network(images).float()
                losses.append(losses_of(logits, labels).sum(dim=1))
                correct.append((logits.argmax(dim=2) == labels).to(torch.uint8))
                counts.append(metrics.counts(self.shape.metric, logits, labels))
        each = torch.cat(correct, dim=1)
        counted = [batch for batch in counts if batch is not None]
        other = [metrics.figures(counted, images=each.shape[1])] if counted else []
        sums = torch.stack([torch.stack(losses).sum(dim=0), each.sum(dim=1).float(), *other]).tolist()
        mean_losses, accuracies = ([total / each.shape[1] for total in figures] for figures in sums[:2])
        chosen_by = {METRICS[self.shape.metric].field: sums[2]} if other else {}
        return mean_losses, accuracies, chosen_by, each

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members (positions in the last epoch's results) alone, in this order."""
        if list(members) == list(range(len(self.members))):
            return
        states, averages = [self.optimizer.member_state(k) for k in members], self.averages
        self.members = [self.members[k] for k in members]
        self.network.keep(members)
        self.prepare_optimizer()
        for k, state in enumerate(states):
            self.optimizer.load_member_state(k, state)
        if self.averages and averages:
            for k, member in enumerate(members):
                self.averages.load_member_state(k, averages.member_state(member))

    def member(self, k: int) -> nn.Module:
        """Member `k`'s best weights so far in a plain network on the CPU; ValueError if no loss was finite."""
        member = self.members[k]
        if not member.best_weights:
            raise ValueError("no epoch with a finite loss yet")
        network = build(self.shape, seed=0, code=self.code)
        network.load_state_dict({name: value.cpu() for name, value in member.best_weights.items()})
        return network

    def state(self, k: int) -> dict[str, torch.Tensor]:
        """All that member `k`'s next epoch depends on, as named tensors, whatever group it is in."""
        member = self.members[k]
        tensors = {f"network.{name}": value for name, value in self.network.member_state(k).items()}
        tensors |= {f"best.{name}": value for name, value in member.best_weights.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.member_state(k).items()}
        if self.averages and member.config.knobs.ema_decay:
            tensors |= {f"average.{name}": value for name, value in self.averages.member_state(k).items()}
        curve = json.dumps([result.to_dict() for result in member.history]).encode()
        tensors["history"] = torch.frombuffer(bytearray(curve), dtype=torch.uint8)
        # A stream has no state between epochs.
        random = torch.empty(0, dtype=torch.uint8)
        if isinstance(member.generator, torch.Generator):
            random = member.generator.get_state()
        return tensors | {"generator": random, "correct": member.correct}

    def restore(self, k: int, state: dict[str, torch.Tensor]) -> None:
        """Have member `k` go on, bit for bit, from a `state` of the same config in whatever group; else StateError.

        Where that is of a GPU and this a CPU, or the other way round, dropout goes on with masks of its own.
        """
        member = self.members[k]
        best, known = _below("best.", state), _below("optimizer.", state)
        try:
            history = [EpochResult(**result) for result in json.loads(bytes(state["history"].tolist()))]
            random, generator = state["generator"], torch.Generator()
            if len(random):
                generator.set_state(random)  # raises where it is none
            else:
                generator.manual_seed(member.seed_of(len(history)))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            raise StateError(one_line(error)) from error
        if best and best.keys() != self.network.member_state(k).keys():
            raise StateError("the best weights are not those of this network")
        self.optimizer.check(k, known)
        averages = self.averages if member.config.knobs.ema_decay else None
        if averages:
            averages.check(k, _below("average.", state))
        self.network.load_member_state(k, _below("network.", state))
        if isinstance(member.generator, torch.Generator):
            member.generator.set_state(generator.get_state())
        member.best_weights = {name: value.to(self.device) for name, value in best.items()}
        self.optimizer.load_member_state(k, known)
        if averages:
            averages.load_member_state(k, _below("average.", state))
        member.correct = state.get("correct", member.correct).to(self.device)  # what was stored before has none
        member.history = history

    def prepare_optimizer(self) -> None:
        """Make a new optimizer of the members' parameters as they lie now; a captured step is of those before."""
        configs = [member.config for member in self.members]
        self.optimizer = build_optimizer(configs, self.network.weights, self.network.gradients)
        self._part_rates = PartRates([each.knobs for each in configs], self.network.parts, self.network.weights)
        decays = [config.knobs.ema_decay for config in configs]
        self.averages = Averages(self.network, decays) if any(decays) else None
        self._loss = Loss(configs, self._class_weights, device=self.device)
        self._loss_sum = torch.zeros(len(self.members), device=self.device)
        self._correct = torch.zeros(len(self.members), device=self.device)
        # Code of a user's own may do what is not to be replayed, such as to look at a number.
        self._replay = Replay() if is_replayed(self.device) and isinstance(self.network, Fused) else None


def _init_seed(member: Member) -> int:
    return derive_seed(member.config.knobs.seed, "init")


def _network(shape: Shape, members: Sequence[Member], code: str | None) -> Rows:
    """The members' networks with their initial weights, fused where that is possible."""
    networks = [build(shape, seed=_init_seed(member), code=code) for member in members]
    dtype, fused = torch.bfloat16 if shape.precision == "bf16" else None, can_fuse(networks[0])
    for member in members[1:]:
        if fused and isinstance(member.generator, Stream):
            member.generator = members[0].generator  # one for all, who draw at once
    masks = [Masks(member.config.knobs.dropout, member.generator, member.config.knobs.rate) for member in members]
    if fused:
        return Fused([cast(nn.Sequential, network) for network in networks], masks, dtype=dtype)
    return Apart(networks, masks, dtype=dtype)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
