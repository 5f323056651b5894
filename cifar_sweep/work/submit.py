"""Submitting: checking a sweep against its images and networks, and making its study."""

from pathlib import Path

from cifar_sweep.config import PARAMETERS, TrialConfig, Value, is_own
from cifar_sweep.errors import UsageError
from cifar_sweep.study.opening import check_request, open_or_resume
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.sweep import Range, Sweep, values_of
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.images.split import split
from cifar_sweep.training.models.own import check_outputs, fingerprints


def check_submission(name: str, sweep: Sweep, data: ImageData) -> None:
    """Refuse what no study can be made of, before a database is.

    Raises:
        UsageError: the name, the pruner, the numbers of images or a model of the user's own are not accepted.
    """
    check_images(sweep, data)
    check_request(name, sweep)
    check_networks(sweep, data)


def check_images(sweep: Sweep, data: ImageData) -> None:
    """Refuse a sweep that asks for more training or validation images than there are, or for a batch larger than those.

    Raises:
        UsageError: it does; the message says which.
    """
    _, validation_images = _bounds(sweep, "validation_images")
    available = len(split(data.train_labels, validation_images=validation_images)[0])  # says where these are too many
    fewest, most = _bounds(sweep, "train_images")
    if most > available:
        raise UsageError(f"train_images = {most}: {data.name} has {available} training images besides validation.")
    used = fewest or most or available
    smallest, largest = _bounds(sweep, "batch_size")
    if largest > used:
        raise UsageError(f"batch_size = {largest}: more than the {used} training images; accepted: at most {used}.")
    if smallest == 1 and _may_normalize_features(sweep):
        raise UsageError("batch_size = 1: batch norm after a hidden layer of cnn3 needs two images; accepted: from 2.")


def _bounds(sweep: Sweep, name: str) -> tuple[int, int]:
    """The least and the greatest value that a whole-numbered parameter takes in this sweep."""
    if sweep.given:
        taken = [int(point.params().get(name, PARAMETERS[name].default)) for point in sweep.enqueue]
        return min(taken), max(taken)
    domain = sweep.space.get(name)
    if domain is None:
        value = int(sweep.fixed.get(name, PARAMETERS[name].default))
        return value, value
    values = [domain.low, domain.high] if isinstance(domain, Range) else [float(value) for value in domain.choices]
    return int(min(values)), int(max(values))


def _may_normalize_features(sweep: Sweep) -> bool:
    return "cnn3" in values_of(sweep, "model") and True in values_of(sweep, "batch_norm")


def check_networks(sweep: Sweep, data: ImageData) -> None:
    """Run a pair of images through each network of the user's own that the sweep names.

    Raises:
        UsageError: there is no such function, or what it makes is no network for these images.
    """
    for model in _models(sweep):
        if is_own(model):
            params: dict[str, Value] = {**sweep.fixed, "model": model}
            config = TrialConfig.from_params(params, classes=len(data.classes), precision="fp32", data_seed=0, seed=0)
            check_outputs(config.shape)


def _models(sweep: Sweep) -> list[str]:
    if sweep.given:
        return [str(point.params().get("model", PARAMETERS["model"].default)) for point in sweep.enqueue]
    return [str(model) for model in values_of(sweep, "model")]


def facts(data: ImageData, *, source: str) -> dict[str, str | int]:
    """What a study stores of its data; `source` is where to find it again, unless told otherwise."""
    there = str(Path(source).absolute()) if Path(source).exists() else source
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "classes": len(data.classes),
        "train_images": len(split(data.train_labels)[0]),
        "test_images": len(data.test_labels),
        "source": there,
    }


def submit(
    storage: Storage,
    name: str,
    sweep: Sweep,
    data: ImageData,
    *,
    source: str,
    artifacts: str | None = None,
    priority: int | None = None,
) -> SweepStudy:
    """Put a study into the database, for workers to train: a new one, or one that is there, with the sweep's budget.

    Args:
        storage: the database.
        name: of the study.
        sweep: what it searches.
        data: its images.
        source: where workers find these.
        artifacts: where checkpoints and weights go; None leaves it as it is (see `open_or_resume`).
        priority: of studies that are open, workers take the one of the highest; None leaves it as it is.

    Raises:
        UsageError: the name, the pruner, the sweep's numbers of images or a model of the user's own are not accepted.
        StudyError: the study is there with another space or other data.
    """
    check_submission(name, sweep, data)
    return open_or_resume(
        storage,
        name,
        sweep,
        data=facts(data, source=source),
        code=fingerprints(_models(sweep)),
        artifacts=artifacts,
        priority=priority,
    )
