"""The hand runs of a sweep of given points: what their source claims, and what was measured here.

The claims stand in the sweep file and are the reports' own, on CIFAR-10; everything else is read from the study.
Claims and differences are in percent and points, measured accuracies are fractions, times are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import PARAMETERS, TrialConfig, Value
from cifar_sweep.study.record import STATE_NAMES, is_synthetic, seconds_spent
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.sweep.sweep import ClaimedEnsemble, Sweep

CIFAR_CLASSES = 10


@dataclass(frozen=True)
class HandRow:
    """One training of a hand run, or the run alone where it was not trained here.

    Attributes:
        label: the run's name in the sweep file.
        model: the network's name, or the members of an ensemble.
        claimed: the report's test accuracy, in percent.
        claimed_seconds: the report's training time.
        note: what the sweep file says besides; then why the trial ended early, if it did.
        epochs: of the trial; of the run where there is none.
        trial: the trial's number.
        state: the trial's, in Optuna's words; else "not run", or "see members" of an ensemble.
        validation: best validation accuracy of a complete trial, a fraction.
        test: measured test accuracy, a fraction.
        seconds: training time here.
        shortened: in what the trial is not the run of the sweep file, as in "3 of 30 epochs"; empty where it is.
        difference: measured minus claimed test accuracy, in points; None where shortened or either is missing.
        commit: the source that trained it.
        device: the device that trained it.
        data: name and fingerprint of the data it was trained and measured on; empty where there is no trial.
    """

    label: str
    model: str
    claimed: float | None = None
    claimed_seconds: float | None = None
    note: str = ""
    epochs: int | None = None
    trial: int | None = None
    state: str = "not run"
    validation: float | None = None
    test: float | None = None
    seconds: float | None = None
    shortened: str = ""
    difference: float | None = None
    commit: str | None = None
    device: str | None = None
    data: str = ""


def hand_rows(
    sweep: Sweep,
    study: SweepStudy | None,
    tests: Mapping[int, float],
    *,
    ensembles: Mapping[str, float] | None = None,
    train_images: int | None = None,
) -> list[HandRow]:
    """A row for each trial of each given point of `sweep`, in its order, then one for each claimed ensemble.

    Args:
        sweep: the whole sweep file, with the claims.
        study: the study that trained its points; None where nothing was run.
        tests: test accuracies (fractions) by trial number.
        ensembles: measured test accuracies (fractions) of claimed ensembles, by label.
        train_images: how many training images the data has, validation taken off; None where that is not known.
    """
    rows: list[HandRow] = []
    for point in sweep.enqueue:
        asked = _settings(sweep.fixed | point.params())
        bare = HandRow(
            label=point.label,
            model=str(asked["model"]),
            claimed=point.claimed,
            claimed_seconds=point.claimed_seconds,
            note=point.note,
            epochs=int(asked["epochs"]),
        )
        done = [
            _with_trial(bare, asked, study, trial, test=tests.get(trial.number), train_images=train_images)
            for trial in (study.trials() if study else ())
            if study and "given" in trial.user_attrs and trial.user_attrs.get("label") == point.label
        ]
        rows += done or [bare]
    measured = ensembles or {}
    return rows + [_ensemble_row(claim, study, measured.get(claim.label)) for claim in sweep.ensemble]


def _settings(params: Mapping[str, Any]) -> dict[str, Value]:
    """All values of a trial with these parameters; its seeds and classes are of no account here."""
    return TrialConfig.from_params(params, classes=2, precision="fp32", data_seed=0, seed=0).to_dict()


def _with_trial(
    bare: HandRow,
    asked: Mapping[str, Value],
    study: SweepStudy,
    trial: FrozenTrial,
    *,
    test: float | None,
    train_images: int | None,
) -> HandRow:
    attributes = trial.user_attrs
    # A trial that nobody has claimed yet has no config.
    own = attributes.get("config") or _settings(study.sweep.fixed | attributes["given"])
    shortened = _departures(own, asked, train_images=train_images)
    return replace(
        bare,
        note="; ".join(words for words in (bare.note, attributes.get("reason")) if words),
        epochs=int(own["epochs"]),
        trial=trial.number,
        state=STATE_NAMES[trial.state],
        validation=trial.value if trial.state is TrialState.COMPLETE else None,
        test=test,
        seconds=seconds_spent(trial) if attributes.get("curve") else None,
        shortened=shortened,
        difference=points(test, bare.claimed, study=study, shortened=shortened),
        commit=attributes.get("environment", {}).get("commit"),
        device=attributes.get("environment", {}).get("device"),
        data=data_words(study),
    )


def _ensemble_row(claim: ClaimedEnsemble, study: SweepStudy | None, test: float | None) -> HandRow:
    """Only whole members are measured together, so that nothing here is shortened."""
    return HandRow(
        label=claim.label,
        model=" + ".join(claim.members),
        claimed=claim.claimed,
        note=claim.note,
        state="see members",
        test=test,
        difference=points(test, claim.claimed, study=study, shortened="") if study else None,
        data=data_words(study) if study and test is not None else "",
    )


def points(test: float | None, claimed: float | None, *, study: SweepStudy, shortened: str) -> float | None:
    """Measured (a fraction) minus claimed (percent), in points, where the two are of the same run on such images."""
    unlike = is_synthetic([study.data["name"]]) or study.data["classes"] != CIFAR_CLASSES
    return None if shortened or unlike or test is None or claimed is None else 100 * test - claimed


def _departures(own: Mapping[str, Any], asked: Mapping[str, Any], *, train_images: int | None) -> str:
    """In what a trial is not the run that was asked for, in words. Precision is the machine's to choose."""
    words = []
    for name in PARAMETERS:
        has, whole = own[name], asked[name]
        if name == "train_images":
            words += _fewer(has or train_images, whole or train_images, "images")
        elif name == "epochs":
            words += _fewer(has, whole, "epochs")
        elif name != "precision" and has != whole:
            words.append(f"{name} {has}, not {whole}")
    return ", ".join(words)


def _fewer(has: int | None, whole: int | None, noun: str) -> list[str]:
    """Words where `has` is not `whole`; None is all there are."""
    if has == whole:
        return []
    of, amount = (f"{count:,}" if count else "all" for count in (whole, has))
    return [f"{amount} of {of} {noun}" if has and (whole is None or has < whole) else f"{amount} {noun}, not {of}"]
