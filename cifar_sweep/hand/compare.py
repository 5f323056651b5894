"""Claimed against measured, for people and programs: the hand runs, and what the sweeps found beside the best of them.

Claims and differences are in percent and points, measured accuracies are fractions; tables show percent throughout.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.table import Table
from rich.text import Text

from cifar_sweep.artifacts import Artifacts
from cifar_sweep.config import PARAMETERS
from cifar_sweep.errors import CifarSweepError, UsageError
from cifar_sweep.hand.rows import HandRow, hand_rows, points
from cifar_sweep.study.record import SYNTHETIC_REMARK, TrialRecord, describe, is_synthetic
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.sweep import Sweep
from cifar_sweep.words import duration, params_text

if TYPE_CHECKING:  # what compares without measuring loads no torch
    import torch

    from cifar_sweep.exports.testset import TestSet
    from cifar_sweep.training.images.data import ImageData


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """A hand run's accuracy, in the unit of the field that holds it."""

    label: str
    accuracy: float


@dataclass(frozen=True)
class SweepRow:
    """The best trial of a searched study, chosen by validation accuracy, beside the best by hand.

    Attributes:
        study: the study's name.
        data: name and fingerprint of its data.
        finished: trials complete or pruned.
        budget: trials asked for.
        shortened: in what the sweep is less than a whole one, as in "preview, 3 of 30 epochs"; empty where it is whole.
        trial: the best trial's number; None, as all about it, before any is complete.
        model: its network.
        epochs: its epochs.
        params: its searched parameters, on one line.
        validation: its validation accuracy, a fraction.
        test: its test accuracy, a fraction.
        claimed_model: the reports' best claim for the same network, in percent.
        claimed_all: as `claimed_model`, over all networks and ensembles.
        measured_model: test accuracy of the unshortened hand run of the same network on the same data that is best by
            validation, a fraction.
        measured_all: as `measured_model`, over all networks.
        difference: `test` minus `claimed_model`, in points; None where shortened or either is missing.
    """

    study: str
    data: str
    finished: int
    budget: int
    shortened: str
    trial: int | None = None
    model: str = ""
    epochs: int | None = None
    params: str = ""
    validation: float | None = None
    test: float | None = None
    claimed_model: Best | None = None
    claimed_all: Best | None = None
    measured_model: Best | None = None
    measured_all: Best | None = None
    difference: float | None = None


def collect(
    studies: Sequence[SweepStudy],
    *,
    hand: str,
    artifacts_of: Callable[[SweepStudy], Artifacts],
    device: "torch.device",
    images_of: "Callable[[SweepStudy], ImageData]",
) -> tuple[list[HandRow], list[SweepRow]]:
    """Everything to compare: the hand runs of study `hand`, and the best trial of each study that searches.

    What has no test accuracy yet is measured, once (see `TestSet`). A study whose images are not at hand is shown
    without, with a warning.

    Raises:
        UsageError: `hand` is a study that searches, or there is no sweep file of its name.
    """
    from cifar_sweep.exports.testset import TestSet

    known = {study.name: study for study in studies}
    by_hand = known.get(hand)
    if by_hand is not None and not by_hand.sweep.given:
        raise UsageError(f"study {hand!r} searches; --study takes a study of given runs, such as that of `reports`.")
    sweep = whole_sweep(by_hand.sweep.name if by_hand else hand) or (by_hand.sweep if by_hand else None)
    if sweep is None or not sweep.given:
        raise UsageError(f"--study {hand}: there is no such study or sweep of given runs; accepted: that of `reports`.")
    searches = [study for study in studies if not study.sweep.given]
    tests: dict[str, dict[int, float]] = {}
    ensembles: dict[str, float] = {}
    for study in [*searches, *([by_hand] if by_hand else [])]:
        test_set = TestSet(study, partial(images_of, study), artifacts=artifacts_of(study), device=device)
        chosen = study.records() if study is by_hand else study.ranked_records()[:1]
        tests[study.name] = test_set.remembered(chosen)
        try:
            tests[study.name] = test_set.accuracies(chosen)
            if study is by_hand:
                ensembles = _ensembles(sweep, study, test_set)
        except CifarSweepError as error:
            log.warning("study %s: not measured on the test set: %s", study.name, error)
    rows = hand_rows(
        sweep,
        by_hand,
        tests.get(hand, {}),
        ensembles=ensembles,
        train_images=by_hand.data.get("train_images") if by_hand else None,
    )
    files = {study.sweep.name: whole_sweep(study.sweep.name) for study in searches}
    return rows, sweep_rows(searches, rows, tests, files=files)


def whole_sweep(name: str) -> Sweep | None:
    """The sweep file of this name, whole; None where there is none that can be read."""
    try:
        return load(find(name))
    except UsageError:
        return None


def _ensembles(sweep: Sweep, study: SweepStudy, test_set: "TestSet") -> dict[str, float]:
    """Test accuracies (fractions) of the claimed ensembles whose members were all run whole."""
    whole: dict[str, TrialRecord] = {}
    for trial in study.ranked_records():
        if not trial.shortened:
            whole.setdefault(trial.label, trial)
    found: dict[str, float] = {}
    for claim in sweep.ensemble:
        members = [whole[label] for label in claim.members if label in whole]
        accuracy = test_set.accuracy(members) if len(members) == len(claim.members) else None
        if accuracy is not None:
            found[claim.label] = accuracy
    return found


def sweep_rows(
    studies: Iterable[SweepStudy],
    hand: Sequence[HandRow],
    tests: Mapping[str, Mapping[int, float]],
    *,
    files: Mapping[str, Sweep | None] | None = None,
) -> list[SweepRow]:
    """A row for each study that searches; studies of given points are passed over.

    Args:
        studies: the studies.
        hand: the hand runs, as `hand_rows` gives them.
        tests: test accuracies (fractions) by study name and trial number.
        files: sweep files by name, whole, to tell how many epochs a shortened sweep would have had.
    """
    whole = files or {}
    return [
        _sweep_row(study, hand, tests.get(study.name, {}), whole.get(study.sweep.name))
        for study in studies
        if not study.sweep.given
    ]


def _sweep_row(study: SweepStudy, hand: Sequence[HandRow], tests: Mapping[int, float], file: Sweep | None) -> SweepRow:
    ranked = study.ranked()
    config: dict[str, Any] = ranked[0].user_attrs["config"] if ranked else {}
    shortened = _sweep_shortened(study, study.sweep.fixed | config, file)
    finished = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials())
    row = SweepRow(study.name, data_words(study), finished, study.budget, shortened)
    if not ranked:
        return row
    same = [each for each in hand if each.model == config["model"]]
    claim = _best_claim(same)
    test = tests.get(ranked[0].number)
    return replace(
        row,
        trial=ranked[0].number,
        model=config["model"],
        epochs=config["epochs"],
        params=params_text(describe(ranked[0])["params"]),
        validation=ranked[0].value,
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
    fixed, preview = study.sweep.fixed, study.sweep.preview.fixed()
    words = ["preview"] if preview and all(fixed.get(name) == value for name, value in preview.items()) else []
    epochs = settings.get("epochs", PARAMETERS["epochs"].default)
    searched = file is not None and "epochs" in file.space
    whole = None if file is None or searched else file.fixed.get("epochs", PARAMETERS["epochs"].default)
    if whole is not None and epochs < whole:
        words.append(f"{epochs} of {whole} epochs")
    elif words or (searched and "epochs" in fixed):
        words.append(f"{epochs} epochs")
    if images := settings.get("train_images"):
        words.append(f"{images:,} of all images")
    return ", ".join(words)


def _best_claim(rows: Iterable[HandRow]) -> Best | None:
    claims = [Best(row.label, row.claimed) for row in rows if row.claimed is not None]
    return max(claims, key=lambda best: best.accuracy, default=None)


def _best_measured(rows: Iterable[HandRow], data: str) -> Best | None:
    """Of whole runs on this data, the one of the best validation accuracy."""
    measured = [
        row for row in rows if row.test is not None and not row.shortened and row.data == data and row.validation
    ]
    best = max(measured, key=lambda row: row.validation or 0, default=None)
    return None if best is None else Best(best.label, best.test or 0)


def as_json(hand: Sequence[HandRow], sweeps: Sequence[SweepRow]) -> dict[str, Any]:
    """All rows as plain data: claims in percent and differences in points, measured accuracies as fractions."""
    return {"hand": [asdict(row) for row in hand], "sweeps": [asdict(row) for row in sweeps]}


def tables(hand: Sequence[HandRow], sweeps: Sequence[SweepRow]) -> list[Table]:
    """The rows for a terminal, accuracies in percent; a table without rows is left out."""
    found = []
    if hand:
        found.append(_hand_table(hand))
    if sweeps:
        found.append(_sweep_table(sweeps))
    return found


def _hand_table(rows: Sequence[HandRow]) -> Table:
    columns = (
        "run", "model", "state", "trial", "report's claim %", "validation %", "test %", "points",
        "report's time", "time", "shortened",
    )  # fmt: skip
    view = _table("the reports' hand runs: claimed and measured test accuracy", columns, rows)
    for row in rows:
        _add(
            view, row.label, row.model, row.state, _count(row.trial), _percent(row.claimed), _share(row.validation),
            _share(row.test), _signed(row.difference), _time(row.claimed_seconds), _time(row.seconds), row.shortened,
        )  # fmt: skip
    return view


def _sweep_table(rows: Sequence[SweepRow]) -> Table:
    columns = (
        "study", "trials", "best", "model", "validation %", "test %", "points", "report's best claim %",
        "best by hand, measured %", "shortened", "with",
    )  # fmt: skip
    view = _table("the sweeps' best trials beside the best by hand", columns, rows)
    for row in rows:
        _add(
            view, row.study, f"{row.finished} of {row.budget}", _count(row.trial), row.model, _share(row.validation),
            _share(row.test), _signed(row.difference), _both(row.claimed_model, row.claimed_all),
            _both(row.measured_model, row.measured_all, factor=100), row.shortened, row.params,
        )  # fmt: skip
    return view


def _table(title: str, columns: Sequence[str], rows: Sequence[HandRow | SweepRow]) -> Table:
    """An empty table whose caption says what the numbers are of, and how far they can be compared."""
    data = list(dict.fromkeys(row.data for row in rows if row.data))
    facts = [f"measured on {', '.join(data)}, one training per row" if data else "nothing is measured yet"]
    facts.append("a claim is the report's own, on CIFAR-10; points are test minus claim")
    facts += [SYNTHETIC_REMARK] if is_synthetic(data) else []
    shortened = sum(bool(row.shortened) for row in rows)
    if shortened:
        title += f" ({shortened} of {len(rows)} rows shortened)"
        facts.append("a shortened training is not compared with a claim")
    view = Table(*columns, title=Text(title), caption=Text("; ".join(facts)), box=None, title_justify="left")
    view.caption_justify = "left"
    for column in view.columns:
        column.overflow = "fold"  # a number or a name is needed whole
    return view


def _add(view: Table, *cells: str) -> None:
    """A row of plain text: labels, names and notes are others' words, not markup."""
    view.add_row(*(Text(cell or "-") for cell in cells))


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _percent(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.2f}"


def _share(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.2%}".removesuffix("%")


def _signed(points: float | None) -> str:
    return "" if points is None else f"{points:+.2f}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _both(model: Best | None, every: Best | None, *, factor: int = 1) -> str:
    """The best of the same model, then the best of all."""
    named = ((model, ""), (every, "all models: "))
    return "\n".join(f"{words}{factor * best.accuracy:.2f} {best.label}" for best, words in named if best)
