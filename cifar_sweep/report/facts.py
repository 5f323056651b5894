"""The facts of a study's report, as plain data: the answer, its spread, what pruning saved, every trial.

No figure, no HTML, no tensor: whatever needs the images is in `mistakes`, and comes here as a `Closer`.
Accuracies are fractions, but for the reports' claims, which are in percent; times are seconds.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from cifar_sweep.config import PARAMETERS, Value, applies
from cifar_sweep.figures.importance import Importances, importances_of
from cifar_sweep.hand.compare import SweepRow, sweep_rows, whole_sweep
from cifar_sweep.hand.rows import HandRow, hand_rows
from cifar_sweep.report.reproduction import Reproduction, reproduction_of
from cifar_sweep.study.record import (
    STATE_NAMES,
    Saved,
    TrialRow,
    is_synthetic,
    rows_of,
    saved_by_pruning,
    seconds_spent,
)
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.sweep import space
from cifar_sweep.sweep.sweep import Range

CONFIDENCE_Z = statistics.NormalDist().inv_cdf(0.975)
REPORTS = "reports"
BY_HAND = "the points were chosen by hand, and say what their authors tried"


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
    z = CONFIDENCE_Z
    middle = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass(frozen=True)
class Repeats:
    """Complete trials of one config that differ in their seeds alone, one for each seed: validation accuracies."""

    numbers: tuple[int, ...]
    mean: float
    deviation: float


@dataclass(frozen=True)
class Mistake:
    """A validation image that was taken for something else, with the probability of that; a PNG as a data URI."""

    right: str
    taken_for: str
    probability: float
    picture: str


@dataclass(frozen=True)
class Closer:
    """What the best trial's network makes of the images, or in one sentence why that is not known.

    Attributes:
        missing: what is not there, and why; empty where everything is.
        validation_images: how many there are; None where they were not at hand.
        test_images: likewise.
        parameters: how many the network has.
        classes: the class names.
        confusion: validation images of class i (row) that were taken for class j (column).
        mistakes: some of the most certain ones.
    """

    missing: str = ""
    validation_images: int | None = None
    test_images: int | None = None
    parameters: int | None = None
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Mistake, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The trial that validation accuracy chose.

    Attributes:
        number: the trial's.
        label: of a point by hand.
        chosen: what the sweep fixes, and what it searched: parameters by name.
        searched: the names among them that were searched, or are the given point's own.
        config: everything that it was trained with.
        validation: best validation accuracy over its epochs.
        test: test accuracy, where it is known.
        repeats: the same config under other seeds, where there are any.
        best_epoch: the epoch whose weights count.
        epochs: of its config.
        seconds: its training time.
    """

    number: int
    label: str
    chosen: Mapping[str, Value]
    searched: tuple[str, ...]
    config: Mapping[str, Value]
    validation: Accuracy
    test: Accuracy | None
    repeats: Repeats | None
    best_epoch: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class ByHand:
    """The reports beside the study: their claims, and the best trial's row among the searches or the given runs."""

    claims: tuple[HandRow, ...]
    search: SweepRow | None = None
    run: HandRow | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report says of a study. `trials` are Optuna's, for the figures; `rows` are the same in lines.

    `shortened` says in what the sweep is less than a whole one; `parameters` are the names of all that were searched or
    given, and `logarithmic` those of them that were searched on a logarithmic scale.
    """

    name: str
    description: str
    data: str
    synthetic: bool
    given: bool
    state: str
    budget: int
    counts: Mapping[str, int]
    seconds: float
    began: datetime | None
    ended: datetime | None
    shortened: str
    sampler: str
    pruner: str
    epochs_searched: bool
    answer: Answer | None
    by_hand: ByHand | None
    saved: Saved
    importances: Importances
    closer: Closer
    reproduction: Reproduction
    parameters: tuple[str, ...]
    logarithmic: frozenset[str]
    rows: tuple[TrialRow, ...]
    trials: tuple[FrozenTrial, ...]


def collect(study: SweepStudy, *, closer: Closer, reports: SweepStudy | None = None) -> Report:
    """The facts of a study as it stands.

    Args:
        study: what the report is of.
        closer: what is known with the images at hand.
        reports: the study of the reports' hand runs, if the same database has one.
    """
    trials = study.trials()
    rows = rows_of(trials)
    synthetic = is_synthetic([study.data["name"]])
    by_hand = None if synthetic else _by_hand(study, reports)
    starts = [row.started for row in rows if row.started]
    ends = [row.ended for row in rows if row.ended]
    ranked = study.ranked()
    return Report(
        name=study.name,
        description=study.sweep.description,
        data=data_words(study),
        synthetic=synthetic,
        given=study.sweep.given,
        state=study.state,
        budget=study.budget,
        counts={name: sum(row.state == name for row in rows) for name in STATE_NAMES.values()},
        seconds=sum(row.seconds for row in rows),
        began=min(starts, default=None),
        ended=max(ends, default=None),
        shortened=_shortened(study, by_hand),
        sampler=study.sweep.sampler.name,
        pruner=study.sweep.pruner.name,
        epochs_searched="epochs" in study.sweep.space,
        answer=_answer(study, ranked, closer) if ranked else None,
        by_hand=by_hand,
        saved=saved_by_pruning(trials),
        importances=Importances((), len(ranked), BY_HAND) if study.sweep.given else importances_of(trials),
        closer=closer,
        reproduction=reproduction_of(study, ranked[0] if ranked else None),
        parameters=tuple(name for name in PARAMETERS if any(name in row.params for row in rows)),
        logarithmic=frozenset(
            name
            for name, domain in study.sweep.space.items()
            if isinstance(domain, Range) and (domain.log or domain.base2)
        ),
        rows=tuple(rows),
        trials=tuple(trials),
    )


def _answer(study: SweepStudy, ranked: Sequence[FrozenTrial], closer: Closer) -> Answer:
    best = ranked[0]
    attributes = best.user_attrs
    config: dict[str, Value] = attributes["config"]
    own = attributes["given"] if study.sweep.given else space.decode(best.params)
    names = [name for name in PARAMETERS if name in own or name in study.sweep.fixed]
    test = study.test_accuracy([best.number])
    return Answer(
        number=best.number,
        label=str(attributes.get("label", "")),
        chosen={name: config[name] for name in names if applies(name, config)},
        searched=tuple(name for name in names if name in own),
        config=config,
        validation=Accuracy(float(best.value or 0), closer.validation_images or _validation_images(study, config)),
        test=None if test is None else Accuracy(test, closer.test_images or study.data.get("test_images")),
        repeats=repeats_of(best, ranked),
        best_epoch=int(attributes.get("best_epoch", config["epochs"])),
        epochs=int(config["epochs"]),
        seconds=seconds_spent(best),
    )


def _validation_images(study: SweepStudy, config: Mapping[str, Value]) -> int | None:
    """From the number of training images: `training.split` takes one image in five of each class for validation."""
    if chosen := int(config.get("validation_images", 0)):
        return chosen
    train_images = study.data.get("train_images")
    return round(train_images / 4) if train_images else None


def repeats_of(best: FrozenTrial, complete: Iterable[FrozenTrial]) -> Repeats | None:
    """The trials that differ from `best` in their seeds alone, it included; None where there is no other."""
    alike = sorted((trial for trial in complete if _but_seeds(trial) == _but_seeds(best)), key=lambda each: each.number)
    by_seed = {trial.user_attrs["config"]["seed"]: trial for trial in reversed(alike)}  # the first of each seed
    if len(by_seed) < 2:
        return None
    values = [float(trial.value or 0) for trial in by_seed.values()]
    numbers = sorted(trial.number for trial in by_seed.values())
    return Repeats(tuple(numbers), statistics.mean(values), statistics.stdev(values))


def _but_seeds(trial: FrozenTrial) -> dict[str, Value]:
    return {name: value for name, value in trial.user_attrs["config"].items() if name not in ("seed", "data_seed")}


def _by_hand(study: SweepStudy, reports: SweepStudy | None) -> ByHand | None:
    """The reports' claims, and what stands beside them of `study`; None where there is no sweep file of the reports."""
    sweep = whole_sweep(study.sweep.name) if study.sweep.given else whole_sweep(REPORTS)
    source = study if study.sweep.given else reports
    if sweep is None or not sweep.given:
        return None
    measured = source.trials() if source else ()
    tests = {trial.number: source.test_accuracy([trial.number]) for trial in measured} if source else {}
    rows = hand_rows(
        sweep,
        source,
        {number: test for number, test in tests.items() if test is not None},
        train_images=source.data.get("train_images") if source else None,
    )
    best = next((trial.number for trial in study.ranked()), None)
    if study.sweep.given:
        return ByHand(tuple(rows), run=next((row for row in rows if row.trial == best and best is not None), None))
    own = {} if best is None else {best: study.test_accuracy([best])}
    known = {number: test for number, test in own.items() if test is not None}
    files = {study.sweep.name: whole_sweep(study.sweep.name)}
    [search] = sweep_rows([study], rows, {study.name: known}, files=files)
    return ByHand(tuple(row for row in rows if row.claimed is not None), search=search)


def _shortened(study: SweepStudy, by_hand: ByHand | None) -> str:
    if by_hand is None:
        files = {study.sweep.name: whole_sweep(study.sweep.name)}
        return "".join(row.shortened for row in sweep_rows([study], (), {}, files=files))
    if by_hand.search is not None:
        return by_hand.search.shortened
    return by_hand.run.shortened if by_hand.run else ""
