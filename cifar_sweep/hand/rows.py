"""The hand runs of a sweep of given points: what their source claims, on CIFAR-10, and what was measured here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cifar_sweep.config import TrialConfig
from cifar_sweep.parameters import PARAMETERS, Value
from cifar_sweep.study.record import TrialRecord, is_synthetic
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.sweep.sweep import ClaimedEnsemble, Sweep


@dataclass(frozen=True)
class HandRow:
    """One training of a hand run, or the run alone where it was not trained here."""

    label: str
    model: str  # the network's name, or the members of an ensemble
    claimed: float | None = None  # the report's test accuracy, in percent
    claimed_seconds: float | None = None  # the report's
    note: str = ""  # what the sweep file says besides; then why the trial ended early, if it did
    epochs: int | None = None  # of the trial; of the run where there is none
    trial: int | None = None
    state: str = "not run"  # the trial's, in Optuna's words; "see members" of an ensemble
    validation: float | None = None  # best validation accuracy of a complete trial, a fraction
    test: float | None = None  # measured test accuracy, a fraction
    seconds: float | None = None  # training time here
    shortened: str = ""  # in what the trial is not the run of the sweep file, as in "3 of 30 epochs"; empty where it is
    difference: float | None = None  # measured minus claimed, in points; None where shortened or either is missing
    commit: str | None = None
    device: str | None = None
    data: str = ""  # name and fingerprint of the data it was trained and measured on; empty where there is no trial


def hand_rows(sweep: Sweep, study: SweepStudy | None) -> list[HandRow]:
    """A row for each trial of each given point of the whole `sweep`, in its order, then one for each claimed ensemble.

    `study` trained its points; None where nothing was run. Test accuracies are those it remembers.
    """
    trials = [trial for trial in study.trials() if trial.given is not None] if study else []
    rows: list[HandRow] = []
    for point in sweep.enqueue:
        asked = _settings(sweep.fixed | point.params())
        said = point.claimed, point.claimed_seconds, point.note
        bare = HandRow(point.label, str(asked["model"]), *said, epochs=int(asked["epochs"]))
        own = [trial for trial in trials if trial.label == point.label]
        rows += [_trial_row(bare, asked, study, trial) for trial in own if study] or [bare]
    return rows + [_ensemble_row(claim, study) for claim in sweep.ensemble]


def names_claims(study: SweepStudy) -> bool:
    """Whether claims belong beside a study: it is of the reports' images, and has points with a label."""
    return is_about(study) and (study.sweep.given or any(point.label for point in study.sweep.enqueue))


def is_about(study: SweepStudy) -> bool:
    """Whether a study is of the reports' images, or of synthetic ones in their place; not of a person's own."""
    return is_synthetic([study.data["name"]]) or study.data["name"] == "CIFAR-10"


def _settings(params: Mapping[str, Any]) -> dict[str, Value]:
    """All values of a trial with these parameters; its seeds and classes do not matter here."""
    return TrialConfig.from_params(params, classes=2, precision="fp32", data_seed=0, seed=0).complete()


def _trial_row(bare: HandRow, asked: Mapping[str, Value], study: SweepStudy, trial: TrialRecord) -> HandRow:
    """The row of a trial of the point that `bare` is of."""
    test, environment = study.test_accuracy([trial.number]), trial.environment
    # A trial that nobody has claimed yet has no config.
    own = trial.settings or _settings(study.sweep.fixed | dict(trial.params))
    shortened = _departures(own, asked, train_images=study.data.get("train_images"))
    if not is_about(study):
        bare = replace(bare, claimed=None, claimed_seconds=None)
    return replace(
        bare,
        note="; ".join(words for words in (bare.note, trial.reason) if words),
        epochs=int(own["epochs"]),
        trial=trial.number,
        state=trial.state,
        validation=trial.accuracy if trial.state == "complete" else None,
        test=test,
        seconds=trial.seconds if trial.curve else None,
        shortened=shortened,
        difference=points(test, bare.claimed, study=study, shortened=shortened),
        commit=environment.commit if environment else None,
        device=environment.device if environment else None,
        data=data_words(study),
    )


def whole_members(claim: ClaimedEnsemble, study: SweepStudy) -> list[TrialRecord]:
    """The best whole run of each member of a claimed ensemble; empty where one is missing."""
    whole = {trial.label: trial for trial in reversed(study.ranked()) if not trial.shortened}
    return [whole[label] for label in claim.members] if set(claim.members) <= whole.keys() else []


def _ensemble_row(claim: ClaimedEnsemble, study: SweepStudy | None) -> HandRow:
    """Only whole members are measured together, so that nothing here is shortened."""
    bare = HandRow(claim.label, " + ".join(claim.members), claim.claimed, note=claim.note, state="see members")
    members = whole_members(claim, study) if study else []
    test = study.test_accuracy([trial.number for trial in members]) if study and members else None
    if study is None or test is None:
        return bare
    difference = points(test, claim.claimed, study=study, shortened="")
    return replace(bare, test=test, difference=difference, data=data_words(study))


def points(test: float | None, claimed: float | None, *, study: SweepStudy, shortened: str) -> float | None:
    """Measured (a fraction) minus claimed (percent), in points, where the two are of the same run on such images."""
    unlike = is_synthetic([study.data["name"]]) or not is_about(study)
    return None if shortened or unlike or test is None or claimed is None else 100 * test - claimed


def _departures(own: Mapping[str, Any], asked: Mapping[str, Any], *, train_images: int | None) -> str:
    """In what a trial is not the run that was asked for, in words. Precision is the machine's to choose."""
    words = [
        _fewer(own["epochs"], asked["epochs"], "epochs"),
        _fewer(own["train_images"] or train_images, asked["train_images"] or train_images, "images"),
    ]
    others = [name for name in PARAMETERS if name not in ("epochs", "train_images", "precision")]
    words += [f"{name} {own[name]}, not {asked[name]}" for name in others if own.get(name) != asked.get(name)]
    return ", ".join(filter(None, words))


def _fewer(has: int | None, whole: int | None, noun: str) -> str:
    """Words where `has` is not `whole`; None is all there are."""
    if has == whole:
        return ""
    of, amount = (f"{count:,}" if count else "all" for count in (whole, has))
    return f"{amount} of {of} {noun}" if has and (whole is None or has < whole) else f"{amount} {noun}, not {of}"
