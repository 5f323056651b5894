"""Notes on a study and on a trial, as Markdown: the plan, how far it is, what reports claim, why a trial ended.

The notes are `templates/study.md` and `templates/trial.md`. A text in them is escaped where it is printed: a label or a
name is text, never a picture, a table or HTML. Only a `Markdown` is printed as it is.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from cifar_sweep.hand.rows import HandRow
from cifar_sweep.pages import templates
from cifar_sweep.parameters import PARAMETERS, applies
from cifar_sweep.search.choice import Hope
from cifar_sweep.study.claiming import state_counts
from cifar_sweep.study.record import SYNTHETIC_REMARK, TrialRecord, counts_text, is_synthetic, saved_by_pruning
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.study.verdict import verdict
from cifar_sweep.study.winner import ranked
from cifar_sweep.sweep.sweep import values_of
from cifar_sweep.words import duration, params_text

TRACEBACK_LINES = 12
# Between our note and a user's own, in one text: the dashboard has one note for a study, and one for a trial.
OWN_NOTE = "*Your own note is below this line; what is above it is written anew each time.*"
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()<>#+-.!|~$&:@/"})


class Markdown(str):
    """Text that is Markdown already."""


def with_own(text: str, own: str, *, invite: bool) -> str:
    """Our note, and a user's own below it; with the place for one where there is none, if that is to be offered."""
    return f"{text}\n\n---\n\n{OWN_NOTE}\n\n{own}".rstrip() if own or invite else text


def own_part(text: str) -> str:
    """Of a note that a user wrote into `with_own`'s, the user's part."""
    return text.rpartition(OWN_NOTE)[2].strip()


def study_note(
    study: SweepStudy, trials: Sequence[TrialRecord], claims: Sequence[HandRow], *, with_curves: bool = True
) -> str:
    """The plan of a study, how far it is with all its trials, and what the reports claim of hand runs.

    `with_curves` says whether the trials' intermediate values are shown beside the note.
    """
    claimed = sorted((row for row in claims if row.claimed is not None), key=lambda row: -(row.claimed or 0))
    alike = [row for row in claimed if row.model in values_of(study.sweep, "model")]
    return _rendered(
        "study.md",
        study=study,
        sweep=study.sweep,
        data=data_words(study),
        counts=state_counts(trials, study.sweep),
        verdict=verdict(study, trials),
        best=next(iter(ranked(trials)), None),
        remarks=[remark["text"] for remark in study.remarks(trials).values()],
        saved=saved_by_pruning(trials),
        devices=sorted({trial.device or "an unknown device" for trial in trials if trial.curve}),
        seconds=sum(trial.seconds for trial in trials),
        with_curves=with_curves,
        alike=alike,
        others=[row for row in claimed if row not in alike],
        synthetic=is_synthetic([study.data["name"]]),
    )


def trial_note(trial: TrialRecord, hope: Hope | None = None) -> str:
    """How a trial ended and why, its first, best and last epoch, what it was trained on, and what is expected of it."""
    return _rendered("trial.md", trial=trial, hope=None if trial.is_finished else hope, epochs=_named_epochs(trial))


def _rendered(name: str, **facts: Any) -> str:
    return _ENVIRONMENT.get_template(name).render(facts).strip()


def _named_epochs(trial: TrialRecord) -> list[tuple[Any, list[str]]]:
    """The first, the best and the last epoch of a trial, with these names; one epoch may have several."""
    if not trial.curve:
        return []
    named = {"first": trial.curve[0], "best": trial.best, "last": trial.curve[-1]}
    epochs = dict.fromkeys(filter(None, named.values()))
    return [(each, [name for name, epoch in named.items() if epoch == each]) for each in epochs]


def _settings_text(settings: BaseModel) -> str:
    """The name of a sampler or pruner, and its settings that are not the usual ones."""
    changed = {key: value for key, value in settings.model_dump(exclude_defaults=True).items() if key != "name"}
    return ", ".join([getattr(settings, "name", ""), *(f"{key.replace('_', ' ')} {changed[key]}" for key in changed)])


def _config_text(trial: TrialRecord) -> str:
    """What a trial's network and training have, and do something with."""
    if trial.config is None:
        return ""
    config = trial.config.to_dict()
    used = {name: value for name, value in config.items() if name in PARAMETERS and applies(name, config)}
    return params_text(used | {"train_images": config.get("train_images") or "all"})


def _block(text: str) -> Markdown:
    """The end of a text of many lines, in a block that nothing in it can end."""
    shown = "\n".join(text.strip().splitlines()[-TRACEBACK_LINES:])
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=2))
    return Markdown(f"{fence}\n{shown}\n{fence}")


def _escaped(value: object) -> object:
    """The value on one line that Markdown shows as it is."""
    return value if isinstance(value, (int, Markdown)) else " ".join(str(value).split()).translate(_MARKS)


_ENVIRONMENT = templates("dashboard", _escaped)
_ENVIRONMENT.globals |= {
    "config_text": _config_text,
    "params_text": params_text,
    "settings_text": _settings_text,
    "synthetic_remark": Markdown(SYNTHETIC_REMARK),
}
_ENVIRONMENT.filters |= {
    "block": _block,
    "counts_text": lambda counts: Markdown(counts_text(counts)),
    "count": lambda number: Markdown(f"{number:,}"),
    "digits": lambda number: Markdown(f"{number:.3g}"),
    "duration": lambda seconds: Markdown(duration(seconds)),
    "loss": lambda nats: Markdown(f"{nats:.4f}"),
    "percent": lambda share: Markdown(f"{share:.2%}"),
    "reached": lambda trial: Markdown(trial.metric.text(trial.value)),
    "percents": lambda percent: Markdown(f"{percent:.2f} %"),
}
