"""Which networks an ensemble is made of: a study's best trials, or exports; as they are, or under other seeds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from optuna.trial import FrozenTrial

from cifar_sweep.config import TrialConfig, derive_seed
from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.results.export import Trained, pick, train_again
from cifar_sweep.results.exported import Exported
from cifar_sweep.search.study import SweepStudy
from cifar_sweep.training.data import ImageData

FEWEST = 2


def choose(study: SweepStudy, *, top: int, numbers: Sequence[int]) -> list[FrozenTrial]:
    """The complete trials with these numbers; with none, the `top` best by validation accuracy.

    Raises:
        StudyError: a number is no complete trial, or there are fewer than `top`.
    """
    if numbers:
        return [pick(study, number) for number in numbers]
    ranked = study.ranked()
    if len(ranked) < top:
        raise StudyError(f"study {study.name!r} has {len(ranked)} complete trials, fewer than the {top} asked for.")
    return ranked[:top]


def joined(exports: Sequence[Exported]) -> list[Trained]:
    """The members of several exports, in order.

    Raises:
        UsageError: they were trained on different data.
    """
    for other in exports[1:]:
        its, first = other.origin, exports[0].origin
        if its.data_fingerprint != first.data_fingerprint:
            raise UsageError(
                f"{other.folder}: trained on {its.data} ({its.data_fingerprint}), not as {exports[0].folder} on "
                f"{first.data} ({first.data_fingerprint}); an ensemble's members are trained on the same data."
            )
    return [member for export in exports for member in export.trained()]


def other_seed(config: TrialConfig, copy: int) -> TrialConfig:
    """`config` with initial weights, dropout masks and order of the images of its own; copies count from 1."""
    return TrialConfig(
        replace(config.shape, data_seed=derive_seed(config.shape.data_seed, "copy", copy)),
        replace(config.knobs, seed=derive_seed(config.knobs.seed, "copy", copy)),
    )


def train_copies(
    chosen: Sequence[Trained],
    *,
    seeds: int,
    data: ImageData,
    device: str,
    threads: int,
    unfinished: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> list[Trained] | None:
    """Train each of `chosen` again under `seeds` other seeds; arguments as in `train_again`. None where stopped."""
    copies: list[Trained] = []
    for original in chosen:
        provenance = original.provenance
        for copy in range(1, seeds + 1):
            say(f"trial {provenance.trial} of study {provenance.study}, seed {copy} of {seeds}")
            trained = train_again(
                other_seed(original.config, copy), provenance,
                data=data, device=device, threads=threads, unfinished=unfinished, stop=stop, say=say,
            )  # fmt: skip
            if trained is None:
                return None
            copies.append(trained)
    return copies


def check_size(members: int) -> None:
    """Raise UsageError for an ensemble of fewer than two."""
    if members < FEWEST:
        raise UsageError(f"an ensemble of {members}: accepted: from {FEWEST} members, by --top, --trials or --seeds.")
