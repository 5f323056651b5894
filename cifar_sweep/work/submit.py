"""Submitting: checking a sweep against its images and networks, and making its study."""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

from cifar_sweep.artifacts import open_artifacts
from cifar_sweep.config import TrialConfig
from cifar_sweep.errors import UsageError
from cifar_sweep.forecast.costs import Costs
from cifar_sweep.forecast.hours import plan_hours
from cifar_sweep.parameters import OWN, is_named, is_own
from cifar_sweep.study.earlier import earlier_of
from cifar_sweep.study.hours import Hours
from cifar_sweep.study.opening import check_request, open_or_resume
from cifar_sweep.study.storage import open_storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.sweep import Sweep, trained_values
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models.own import check_outputs, fingerprints


def submit(
    storage: str,
    name: str,
    sweep: Sweep,
    data: ImageData,
    *,
    source: str,
    artifacts: str | None = None,
    priority: int | None = None,
    hours: Hours | None = None,
    earlier: SweepStudy | None = None,
    extend: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> SweepStudy:
    """Put a study into the database, for workers to train: a new one, or one that is there, with the sweep's budget.

    Everything is checked before the database is made. `source` is where workers find the images, `artifacts` where
    checkpoints and weights go; workers take the open study of the highest `priority`. None leaves these as they are.
    `hours` are those that the sweep was cut to. `earlier` is another study that this one begins with; with `extend` a
    study that is there gets this sweep; `say` is told what both give.
    Raises as `check_submission`, `open_artifacts`, `open_storage`, `earlier_of`, `open_or_resume`.
    """
    check_submission(name, sweep, data)
    own = [str(value) for name in ("model", "weights_file") for value in trained_values(sweep, name)]
    known, code = facts(data, source=source), fingerprints(own)
    found = earlier_of(earlier, sweep, data=known, code=code) if earlier else None
    if found:
        say(found.words)
    address = open_artifacts(artifacts).address if artifacts is not None else None
    study = open_or_resume(
        open_storage(storage),
        name,
        sweep,
        data=known,
        code=code,
        artifacts=address,
        priority=priority,
        hours=hours,
        earlier=found,
        extend=extend,
    )
    if extend and study.changes:
        say(f"study {name!r} is extended: {study.changes[-1]['words']}")
    return study


def in_hours(sweep: Sweep, costs: Costs, hours: float, *, begun: float | None = None) -> tuple[Sweep, Hours]:
    """A sweep cut to so many hours, at these costs of the whole sweep, and what its study stores of that.

    The hours began at `begun`, in seconds since the epoch, or begin with the first worker. Raises as `plan_hours`.
    """
    plan = plan_hours(sweep, costs, hours, spent=time.time() - begun if begun else 0.0)
    end = begun + 3600 * hours if begun else None
    return plan.sweep, Hours(hours, sweep.identity(), plan.reserve, end, plan.uncuts)


def check_submission(name: str, sweep: Sweep, data: ImageData) -> None:
    """Raise UsageError where the name, the pruner, the images or a model of the user's own are not accepted."""
    check_images(sweep, data)
    check_request(name, sweep)
    models = filter(_may_not_fit, map(str, trained_values(sweep, "model")))
    for model, weights in product(models, dict.fromkeys(trained_values(sweep, "weights_file"))):
        searched = {name: trained_values(sweep, name)[0] for name in sweep.space if name.startswith(OWN)}
        params, classes = {**sweep.fixed, **searched, "model": model, "weights_file": weights}, len(data.classes)
        check_outputs(TrialConfig.from_params(params, classes=classes, precision="fp32", data_seed=0, seed=0).shape)


def _may_not_fit(model: str) -> bool:
    return is_own(model) or is_named(model)


def check_images(sweep: Sweep, data: ImageData) -> None:
    """Raise UsageError where a sweep asks for more images than there are, or for a larger batch."""
    held_out = max(int(value) for value in trained_values(sweep, "validation_images"))
    available = len(data.divide(validation_images=held_out)[0])  # says where these are too many
    wanted = [int(value) for value in trained_values(sweep, "train_images")]
    if (most := max(wanted)) > available:
        raise UsageError(f"train_images = {most}: {data.name} has {available} training images besides validation.")
    used = min(wanted) or most or available
    for weights in map(str, trained_values(sweep, "class_weights")):
        if weights not in ("none", "balanced") and weights.count(",") + 1 != len(data.classes):
            each = f"one for each of the {len(data.classes)} classes of {data.name}"
            raise UsageError(f"class_weights = {weights} is not accepted; it takes none, balanced, or {each}.")
    for name in [*sweep.fixed, *sweep.space]:
        if name.startswith("class_weights_") and int(name.rpartition("_")[2]) > len(data.classes):
            raise UsageError(f"{name}: {data.name} has {len(data.classes)} classes.")
    batches = [int(value) for value in trained_values(sweep, "batch_size")]
    if (most := max(batches)) > used:
        raise UsageError(f"batch_size = {most}: more than the {used} training images; accepted: at most {used}.")
    if min(batches) == 1 and "cnn3" in trained_values(sweep, "model") and True in trained_values(sweep, "batch_norm"):
        raise UsageError("batch_size = 1: batch norm after a hidden layer of cnn3 needs two images; accepted: from 2.")


def facts(data: ImageData, *, source: str) -> dict[str, str | int]:
    """What a study stores of its data; `source` is where to find it again, unless told otherwise."""
    there = str(Path(source).absolute()) if Path(source).exists() else source
    known: dict[str, str | int] = {"name": data.name, "fingerprint": data.fingerprint, "classes": len(data.classes)}
    training, held_out = data.divide()
    known |= {"train_images": len(training), "test_images": len(data.test_labels), "validation_images": len(held_out)}
    return known | {"source": there} | ({"notes": "; ".join(data.notes)} if data.notes else {})
