"""The members of an ensemble: a study's best trials, or the networks of exports."""

from collections.abc import Sequence

from cifar_sweep.errors import StudyError, UsageError
from cifar_sweep.exports.exported import Exported
from cifar_sweep.exports.trained import Trained, pick
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy

FEWEST = 2


def choose(study: SweepStudy, *, top: int, numbers: Sequence[int]) -> list[TrialRecord]:
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
        second, first = other.origin, exports[0].origin
        if second.data_fingerprint != first.data_fingerprint:
            raise UsageError(
                f"{other.folder}: trained on {second.data} ({second.data_fingerprint}), not as {exports[0].folder} on "
                f"{first.data} ({first.data_fingerprint}); an ensemble's members are trained on the same data."
            )
    return [member for export in exports for member in export.trained()]


def check_size(members: int) -> None:
    """Raise UsageError for an ensemble of fewer than two members."""
    if members < FEWEST:
        raise UsageError(f"an ensemble of {members}: accepted: from {FEWEST} members, by --top, --trials or --seeds.")
