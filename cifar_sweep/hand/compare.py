"""Claimed against measured: the hand runs, and what the sweeps found beside the best of them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from rich.table import Column, Table
from rich.text import Text

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.hand.rows import HandRow, hand_rows, is_about, points, whole_members
from cifar_sweep.parameters import PARAMETERS
from cifar_sweep.study.record import SYNTHETIC_REMARK, is_synthetic
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.study.verdict import verdict
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import duration, params_text

if TYPE_CHECKING:  # what compares without measuring loads no torch
    import torch

    from cifar_sweep.training.images.data import ImageData

log = logging.getLogger(__name__)
Row = TypeVar("Row", HandRow, "SweepRow")


@dataclass(frozen=True)
class Best:
    """A hand run's accuracy, in the unit of the field that holds it."""

    label: str
    accuracy: float


@dataclass(frozen=True)
class SweepRow:
    """The best trial of a searched study, chosen by validation accuracy, beside the best by hand."""

    study: str
    data: str  # name and fingerprint
    finished: int  # trials complete or pruned
    budget: int  # trials asked for
    shortened: str  # in what it is less than a whole sweep, as in "preview, 3 of 30 epochs"; empty where it is whole
    trial: int | None = None  # the best trial's number; None, as all about it, before any is complete
    by_chance: bool = False  # whether the study came to nothing: no trial is better than guessing
    model: str = ""
    epochs: int | None = None
    params: str = ""  # its searched parameters, on one line
    validation: float | None = None  # its validation accuracy, a fraction
    test: float | None = None  # its test accuracy, a fraction
    claimed_model: Best | None = None  # the reports' best claim for the same network, in percent
    claimed_all: Best | None = None  # the same over all networks and ensembles
    # Test accuracy of the unshortened hand run of the same network and data that is best by validation, a fraction.
    measured_model: Best | None = None
    measured_all: Best | None = None  # the same over all networks
    difference: float | None = None  # test minus claimed_model, in points; None where shortened or either is missing


def collect(
    studies: Sequence[SweepStudy],
    *,
    hand: str,
    artifacts_of: Callable[[SweepStudy], Artifacts],
    device: "torch.device",
    images_of: "Callable[[SweepStudy], ImageData]",
) -> tuple[list[HandRow], list[SweepRow]]:
    """Everything to compare: the hand runs of study `hand`, and the best trial of each study that searches.

    What has no test accuracy yet is measured, once. A study whose images are not at hand is shown without, with a
    warning. Raises UsageError where `hand` searches, or there is no sweep file of its name.
    """
    from cifar_sweep.exports.testset import accuracy_on_test

    by_hand = next((study for study in studies if study.name == hand), None)
    sweep = _hand_sweep(by_hand, hand)
    searches = [study for study in studies if not study.sweep.given]
    for study in [*searches, *([by_hand] if by_hand else [])]:
        images, artifacts = cache(partial(images_of, study)), artifacts_of(study)
        alone = study.trials() if study is by_hand else study.ranked()[:1]
        together = [whole_members(claim, study) for claim in sweep.ensemble] if study is by_hand else []
        try:
            for members in [*([trial] for trial in alone), *filter(None, together)]:
                accuracy_on_test(study, members, images, artifacts=artifacts, device=device)
        except CifarSweepError as error:
            log.warning("study %s: not measured on the test set: %s", study.name, error)
    rows = hand_rows(sweep, by_hand)
    return rows, sweep_rows(searches, rows)


def _hand_sweep(study: SweepStudy | None, name: str) -> Sweep:
    """The sweep of given points with the claims: of `study`, or, where nothing was run, the file of that name."""
    if study is not None and not study.sweep.given:
        raise UsageError(f"study {name!r} searches; --study takes a study of given runs, such as that of `reports`.")
    sweep = whole_sweep(study.sweep.name if study else name) or (study.sweep if study else None)
    if sweep is None or not sweep.given:
        raise UsageError(f"--study {name}: there is no such study or sweep of given runs; accepted: that of `reports`.")
    return sweep


def whole_sweep(name: str) -> Sweep | None:
    """The sweep file of this name, whole; None where there is none that can be read."""
    try:
        return load(find(name))
    except UsageError:
        return None


def sweep_rows(studies: Iterable[SweepStudy], hand: Sequence[HandRow]) -> list[SweepRow]:
    """A row for each study that searches; others are passed over. Test accuracies are those that they remember."""
    return [_sweep_row(study, hand, whole_sweep(study.sweep.name)) for study in studies if not study.sweep.given]


def _sweep_row(study: SweepStudy, hand: Sequence[HandRow], file: Sweep | None) -> SweepRow:
    finished = sum(trial.state in ("complete", "pruned") for trial in study.trials() if trial.confirms is None)
    best = next(iter(study.ranked()), None)
    shortened = _sweep_shortened(study, study.sweep.fixed | dict(best.settings if best else {}), file)
    row = SweepRow(study.name, data_words(study), finished, study.budget, shortened)
    if best is None:
        return row
    model = str(best.settings["model"])
    hand = hand if is_about(study) else ()
    same = [each for each in hand if each.model == model]
    claim, test = _best_claim(same), study.test_accuracy([best.number])
    return replace(
        row,
        trial=best.number,
        by_chance=bool(verdict(study, study.trials())),
        model=model,
        epochs=best.epochs,
        params=params_text(best.params),
        validation=best.accuracy,
        test=test,
        claimed_model=claim,
        claimed_all=_best_claim(hand),
        measured_model=_best_measured(same, row.data),
        measured_all=_best_measured(hand, row.data),
        # Without its file nobody can tell whether the sweep was shortened.
        difference=points(test, claim.accuracy, study=study, shortened=shortened) if claim and file else None,
    )


def _sweep_shortened(study: SweepStudy, settings: Mapping[str, Any], file: Sweep | None) -> str:
    """In what a sweep is less than a whole one, in words."""
    fixed, preview = study.sweep.fixed, study.sweep.preview.params()
    words = ["preview"] if preview and all(fixed.get(name) == value for name, value in preview.items()) else []
    epochs = settings.get("epochs", PARAMETERS["epochs"].default)
    searched = file is not None and "epochs" in file.space
    whole = None if file is None or searched else file.fixed.get("epochs", PARAMETERS["epochs"].default)
    if whole is not None and epochs < whole:
        words.append(f"{epochs} of {whole} epochs")
    elif words or (searched and "epochs" in fixed):
        words.append(f"{epochs} epochs")
    images, of = settings.get("train_images"), study.data.get("train_images")
    if file is not None and images and "train_images" not in file.space and images != file.fixed.get("train_images", 0):
        words.append(f"{images:,} of {f'{of:,}' if of else 'all'} images")
    return ", ".join(words)


def _best_claim(rows: Iterable[HandRow]) -> Best | None:
    claims = [Best(row.label, row.claimed) for row in rows if row.claimed is not None]
    return max(claims, key=lambda best: best.accuracy, default=None)


def _best_measured(rows: Iterable[HandRow], data: str) -> Best | None:
    """Of whole runs on this data, the one of the best validation accuracy."""
    whole = (row for row in rows if row.test is not None and row.validation and not row.shortened and row.data == data)
    best = max(whole, key=lambda row: row.validation or 0, default=None)
    return None if best is None else Best(best.label, best.test or 0)


def as_json(hand: Sequence[HandRow], sweeps: Sequence[SweepRow]) -> dict[str, Any]:
    """All rows as plain data: claims in percent and differences in points, measured accuracies as fractions."""
    return {"hand": [asdict(row) for row in hand], "sweeps": [asdict(row) for row in sweeps]}


def tables(hand: Sequence[HandRow], sweeps: Sequence[SweepRow]) -> list[Table]:
    """The rows for a terminal, accuracies in percent; a table without rows is left out."""
    first = [_table("the reports' hand runs: claimed and measured test accuracy", HAND_COLUMNS, hand)] if hand else []
    second = [_table("the sweeps' best trials beside the best by hand", SWEEP_COLUMNS, sweeps)] if sweeps else []
    return first + second


def _known(value: float | None, form: str, *, factor: int = 1) -> str:
    return "" if value is None else f"{factor * value:{form}}"


def _both(model: Best | None, every: Best | None, *, factor: int = 1) -> str:
    """The best of the same model, then the best of all."""
    named = ((model, ""), (every, "all models: "))
    return "\n".join(f"{words}{factor * best.accuracy:.2f} {best.label}" for best, words in named if best)


def _mark(data: str) -> str:
    return " *" if is_synthetic([data]) else ""


HAND_COLUMNS: dict[str, Callable[[HandRow], str]] = {
    "run": lambda row: row.label + _mark(row.data),
    "model": lambda row: row.model,
    "state": lambda row: row.state,
    "trial": lambda row: _known(row.trial, "d"),
    "report's claim %": lambda row: _known(row.claimed, ".2f"),
    "validation %": lambda row: _known(row.validation, ".2f", factor=100),
    "test %": lambda row: _known(row.test, ".2f", factor=100),
    "points": lambda row: _known(row.difference, "+.2f"),
    "report's time": lambda row: "" if row.claimed_seconds is None else duration(row.claimed_seconds),
    "time": lambda row: "" if row.seconds is None else duration(row.seconds),
    "shortened": lambda row: row.shortened,
}
SWEEP_COLUMNS: dict[str, Callable[[SweepRow], str]] = {
    "study": lambda row: row.study + _mark(row.data),
    "trials": lambda row: f"{row.finished} of {row.budget}",
    "best": lambda row: _known(row.trial, "d") + " by chance" * row.by_chance,
    "model": lambda row: row.model,
    "validation %": lambda row: _known(row.validation, ".2f", factor=100),
    "test %": lambda row: _known(row.test, ".2f", factor=100),
    "points": lambda row: _known(row.difference, "+.2f"),
    "report's best claim %": lambda row: _both(row.claimed_model, row.claimed_all),
    "best by hand, measured %": lambda row: _both(row.measured_model, row.measured_all, factor=100),
    "shortened": lambda row: row.shortened,
    "with": lambda row: row.params,
}


def _table(title: str, columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> Table:
    """A table whose caption says what the numbers are of, and how far they can be compared."""
    data = list(dict.fromkeys(row.data for row in rows if row.data))
    facts = [f"measured on {', '.join(data)}, one training per row" if data else "nothing is measured yet"]
    facts.append("a claim is the report's own, on CIFAR-10; points are test minus claim")
    facts += [f"* {SYNTHETIC_REMARK}"] if is_synthetic(data) else []
    shortened = sum(bool(row.shortened) for row in rows)
    if shortened:
        title += f" ({shortened} of {len(rows)} rows shortened)"
        facts.append("a shortened training is not compared with a claim")
    headers = (Column(name, overflow="fold") for name in columns)  # a number or a name is needed whole
    view = Table(*headers, title=Text(title), caption=Text("; ".join(facts)), box=None)
    view.title_justify = view.caption_justify = "left"
    for row in rows:
        # As plain text: labels, names and notes are others' words, not markup.
        view.add_row(*(Text(words(row) or "-") for words in columns.values()))
    return view
