"""The facts of a study's report: the answer, its spread, what pruning saved, every trial.

No figure, no HTML, no tensor: whatever needs the images is in `mistakes`, and comes here as `ImageFindings`.
Accuracies are fractions, but for the reports' claims, which are in percent; times are seconds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cifar_sweep.figures.search_figures import Importances, importances_of
from cifar_sweep.hand.compare import SweepRow, sweep_rows, whole_sweep
from cifar_sweep.hand.rows import HandRow, hand_rows, names_claims
from cifar_sweep.parameters import OWN, PARAMETERS, Value, applies
from cifar_sweep.report.reproduction import Reproduction, reproduction_of
from cifar_sweep.study.claiming import state_counts
from cifar_sweep.study.record import Saved, TrialRecord, is_synthetic, saved_by_pruning
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.study.verdict import verdict

REPORTS = "reports"
BY_HAND = "the points were chosen by hand, not searched"
MOST_CONFUSED = 10


@dataclass(frozen=True)
class Accuracy:
    """An accuracy, and on how many images it was measured; None where that is not known."""

    value: float
    images: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval that the number of images leaves; None where that is not known."""
        return wilson(self.value, self.images) if self.images else None


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many independent images.

    Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    middle = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass(frozen=True)
class Mistake:
    """A validation image and what it was taken for, with the probability of that; a PNG as a data URI."""

    right: str
    taken_for: str
    probability: float
    picture: str


@dataclass(frozen=True)
class ImageFindings:
    """What the best trial's network makes of the images; None and empty where they were not at hand."""

    missing: str = ""  # what is not there, and why, in one sentence; empty where everything is
    validation_images: int | None = None
    test_images: int | None = None
    parameters: int | None = None
    classes: tuple[str, ...] = ()
    # Validation images of class i (row) that were taken for class j (column).
    confusion: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Mistake, ...] = ()  # some of the most certain ones
    samples: tuple[Mistake, ...] = ()  # some images of each class, and what they were taken for, rightly or not
    filters: tuple[str, ...] = ()  # those of the first convolution, each as a PNG in a data URI

    def most_confused(self) -> list[tuple[str, str, int, int]]:
        """The most mistaken pairs by share of the right class: right class, taken for, how many, of how many images."""
        found = [
            (self.classes[right], self.classes[taken], count, sum(row))
            for right, row in enumerate(self.confusion)
            for taken, count in enumerate(row)
            if right != taken and count
        ]
        return sorted(found, key=lambda pair: -pair[2] / pair[3])[:MOST_CONFUSED]


@dataclass(frozen=True)
class Answer:
    """The trial that was chosen."""

    trial: TrialRecord
    chosen: Mapping[str, Value]  # what the sweep fixes, and what it searched: parameters by name
    searched: tuple[str, ...]  # the names among them that were searched, or are the given point's own
    validation: Accuracy
    test: Accuracy | None
    remarks: Sequence[str]  # what to expect of it on new images, and how it was confirmed, as far as that is known


@dataclass(frozen=True)
class ByHand:
    """The reports beside the study: their claims, and the best trial's row among the searches or the given runs."""

    claims: tuple[HandRow, ...]
    search: SweepRow | None = None
    run: HandRow | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report says of a study."""

    study: SweepStudy
    data: str  # name and fingerprint of its images
    synthetic: bool
    trials: Sequence[TrialRecord]
    ranked: Sequence[TrialRecord]  # the complete trials, the best first
    counts: Mapping[str, int]  # how many trials are in each state
    seconds: float
    shortened: str  # in what the sweep is less than a whole one; empty where it is whole
    verdict: str  # why no trial is worth taking away, where the study is over; else empty
    answer: Answer | None  # None before any trial is complete
    by_hand: ByHand | None  # None on synthetic images
    saved: Saved
    importances: Importances
    findings: ImageFindings
    reproduction: Reproduction
    parameters: tuple[str, ...]  # the names of all that were searched or given


def collect(study: SweepStudy, *, findings: ImageFindings, reports: SweepStudy | None = None) -> Report:
    """The facts of a study as it stands; `reports` is that of the reports' hand runs, if the database has one."""
    trials, ranked = study.trials(), study.ranked()
    best = next(iter(ranked), None)
    synthetic, nothing = is_synthetic([study.data["name"]]), verdict(study, trials)
    by_hand = _by_hand(study, best, reports) if names_claims(study) else None
    return Report(
        study=study,
        data=data_words(study),
        synthetic=synthetic,
        trials=trials,
        ranked=ranked,
        counts=state_counts(trials, study.sweep),
        seconds=sum(trial.seconds for trial in trials),
        shortened=_shortened(study, by_hand),
        verdict=nothing,
        answer=_answer(study, ranked, findings) if ranked else None,
        by_hand=None if synthetic else by_hand,
        saved=saved_by_pruning(trials),
        importances=Importances((), len(ranked), BY_HAND) if study.sweep.given else importances_of(trials),
        findings=findings,
        reproduction=reproduction_of(study, None if nothing else best),
        parameters=tuple(name for name in _names(study) if any(name in trial.params for trial in trials)),
    )


def _names(study: SweepStudy) -> list[str]:
    """The parameters in order, those of a user's own network last."""
    return [*PARAMETERS, *sorted(name for name in {**study.sweep.space, **study.sweep.fixed} if name.startswith(OWN))]


def _answer(study: SweepStudy, ranked: Sequence[TrialRecord], findings: ImageFindings) -> Answer:
    best = ranked[0]
    settings = best.config.complete() if best.config else {}
    names = [name for name in _names(study) if name in best.params or name in study.sweep.fixed]
    images = findings.validation_images or study.validation_images(best) or None
    test = study.test_accuracy([best.number])
    told = f"chosen by {study.metric.words}: {study.metric.number(best.value or 0)}{study.metric.unit}"
    chosen_by = [] if study.sweep.metric == "accuracy" else [told]
    return Answer(
        trial=best,
        chosen={name: settings[name] for name in names if name in settings and applies(name, settings)},
        searched=tuple(name for name in names if name in best.params),
        validation=Accuracy(float(best.accuracy or 0), images),
        test=None if test is None else Accuracy(test, findings.test_images or study.data.get("test_images")),
        remarks=[*chosen_by, *(remark["text"] for remark in study.remarks().values())],
    )


def _by_hand(study: SweepStudy, best: TrialRecord | None, reports: SweepStudy | None) -> ByHand | None:
    """The reports' claims, and what stands beside them of `study`; None where there is no sweep file of the reports."""
    given = study.sweep.given
    sweep = whole_sweep(study.sweep.name if given else REPORTS)
    if sweep is None or not sweep.given:
        return None
    rows = hand_rows(sweep, study if given else reports)
    if given:
        own = [row for row in rows if best is not None and row.trial == best.number]
        return ByHand(tuple(rows), run=next(iter(own), None))
    [search] = sweep_rows([study], rows)
    return ByHand(tuple(row for row in rows if row.claimed is not None), search=search)


def _shortened(study: SweepStudy, by_hand: ByHand | None) -> str:
    if by_hand is None:
        return "".join(row.shortened for row in sweep_rows([study], ()))
    row = by_hand.search or by_hand.run
    return row.shortened if row else ""
