"""Notes on a study and on a trial, as Markdown: the plan, how far it is, what reports claim, why a trial ended.

Whatever a user may have written is escaped: a label or a name is text, never a picture, a table or HTML.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_sweep.config import PARAMETERS, applies
from cifar_sweep.hand.rows import HandRow
from cifar_sweep.study.record import (
    STATE_NAMES,
    SYNTHETIC_REMARK,
    is_synthetic,
    records,
    saved_by_pruning,
    seconds_spent,
)
from cifar_sweep.study.study import SweepStudy, data_words
from cifar_sweep.sweep.sweep import Choices, Range, Sweep
from cifar_sweep.words import duration, params_text

TRACEBACK_LINES = 12
# Between our note and a user's own, in one text: the dashboard has one note for a study, and one for a trial.
OWN_NOTE = "*Your own note is below this line; what is above it is written anew each time.*"
NO_CURVES = "not drawn here, of so many trials; each trial's note has its first, best and last epoch"
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()<>#+-.!|~$&:@/"})


def plain(text: object) -> str:
    """Text on one line that Markdown shows as it is."""
    return " ".join(str(text).split()).translate(_MARKS)


def with_own(text: str, own: str, *, invite: bool) -> str:
    """Our note, and a user's own below it; with the place for one where there is none, if that is to be offered."""
    return f"{text}\n\n---\n\n{OWN_NOTE}\n\n{own}".rstrip() if own or invite else text


def own_part(text: str) -> str:
    """Of a note that a user wrote into `with_own`'s, the user's part."""
    return text.rpartition(OWN_NOTE)[2].strip()


def study_note(
    study: SweepStudy, trials: Sequence[FrozenTrial], claims: Sequence[HandRow], *, with_curves: bool = True
) -> str:
    """The plan of a study, how far it is, and what the reports claim of hand runs.

    Args:
        study: the study.
        trials: all its trials.
        claims: the hand runs of the reports; only what they claim is shown.
        with_curves: whether the trials' intermediate values are shown beside the note.
    """
    return _joined(
        plain(study.sweep.description),
        "### Plan",
        _facts(_plan(study)),
        "### So far",
        _facts(_progress(study, trials) | ({} if with_curves else {"curves": NO_CURVES})),
        _claims(claims, networks=_networks(study.sweep), data=study.data["name"]),
    )


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _facts(facts: Mapping[str, str]) -> str:
    """A table of two columns. The values are Markdown already; those that are empty are left out."""
    return _table(("", ""), [(f"**{name}**", value) for name, value in facts.items() if value])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _plan(study: SweepStudy) -> dict[str, str]:
    sweep = study.sweep
    points = "" if sweep.given or not sweep.enqueue else f"; {len(sweep.enqueue)} points by hand are tried first"
    return {
        "searched": "nothing: the points are given" if sweep.given else _space(sweep),
        "fixed": plain(params_text(sweep.fixed)),
        "sampler": _settings(sweep.sampler.model_dump(exclude_defaults=True), sweep.sampler.name),
        "pruner": _settings(sweep.pruner.model_dump(exclude_defaults=True), sweep.pruner.name),
        "budget": f"{study.budget:,} trials{points}",
        "seed": str(sweep.seed),
        "data": plain(f"{data_words(study)}, {study.data['classes']} classes"),
        "chosen by": "validation accuracy; no trial reads the test set",
    }


def _space(sweep: Sweep) -> str:
    return "; ".join(f"{plain(name)} {_domain(domain)}" for name, domain in sweep.space.items())


def _domain(domain: Range | Choices) -> str:
    return plain(f"{domain}, logarithmic" if isinstance(domain, Range) and domain.log else domain)


def _settings(changed: Mapping[str, Any], name: str) -> str:
    words = [f"{key.replace('_', ' ')} {value}" for key, value in changed.items() if key != "name"]
    return plain(", ".join([name, *words]))


def _networks(sweep: Sweep) -> set[str]:
    """The networks that a sweep may train."""
    domain = sweep.space.get("model")
    if isinstance(domain, Choices):
        return {str(choice) for choice in domain.choices}
    return {str(sweep.fixed.get("model", PARAMETERS["model"].default))}


def _progress(study: SweepStudy, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    counts = Counter(STATE_NAMES[trial.state] for trial in trials)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best = max(complete, key=lambda trial: (trial.value or 0, -trial.number), default=None)
    saved = saved_by_pruning(records(trials))
    devices = sorted({_device(trial) for trial in trials if trial.user_attrs.get("curve")})
    ended = counts["complete"] + counts["pruned"]
    return {
        "state": plain(study.state + (f": {study.reason}" if study.reason else "")),
        "trials": f"{ended:,} of {study.budget:,} done: "
        + ", ".join(f"{counts[name]:,} {name}" for name in STATE_NAMES.values()),
        "best": _best(best, data=study.data["name"]) if best else "none yet",
        "its config": plain(_config_words(best)) if best else "",
        "pruning": f"{saved.trials:,} trials ended early: {saved.epochs:,} epochs not trained, which would have taken "
        f"about {duration(saved.seconds)} at their own pace"
        if saved.trials
        else "",
        "training time": plain(f"{duration(sum(map(seconds_spent, trials)))} in all, on {', '.join(devices)}")
        if devices
        else "",
    }


def _best(best: FrozenTrial, *, data: str) -> str:
    label = best.user_attrs.get("label")
    point = f", the point {plain(label)}" if label else ""
    return f"**{best.value:.2%}** validation accuracy on {plain(data)}, trial {best.number}{point}"


def _config_words(trial: FrozenTrial) -> str:
    """What a trial's network and training have, and do something with; all images are not mentioned."""
    config = trial.user_attrs.get("config", {})
    return params_text(
        {name: value for name, value in config.items() if name in PARAMETERS and applies(name, config)}
        | {"train_images": config.get("train_images") or "all"}
        if config
        else {}
    )


def _device(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("environment", {}).get("device", "an unknown device"))


def _claims(rows: Sequence[HandRow], *, networks: set[str], data: str) -> str:
    """What the reports claim: each hand run of the same networks, and the best of the others."""
    claimed = sorted((row for row in rows if row.claimed is not None), key=lambda row: -(row.claimed or 0))
    alike = [row for row in claimed if row.model in networks]
    others = [row for row in claimed if row not in alike]
    if not claimed:
        return ""
    words = (
        "Test accuracies on CIFAR-10, as students' reports state them. They were not measured here, and they are not "
        "validation accuracies: they do not compare with the numbers above."
    )
    if is_synthetic([data]):
        words += f" Besides, {SYNTHETIC_REMARK}."
    table = _table(
        ("run", "network", "claimed test accuracy", "remark"),
        [(plain(row.label), plain(row.model), f"{row.claimed:.2f} %", plain(row.note)) for row in alike],
    )
    best = f"Best of the other networks: {others[0].claimed:.2f} %, {_of(others[0])}." if others else ""
    return _joined("### What the reports claim", words, table if alike else "", best)


def _of(row: HandRow) -> str:
    return plain(f"{row.label} ({row.model})")


def trial_note(trial: FrozenTrial) -> str:
    """How a trial ended and why, its first, best and last epoch, and what it was trained on."""
    curve = trial.user_attrs.get("curve", [])
    label, shortened = trial.user_attrs.get("label"), trial.user_attrs.get("shortened")
    environment = trial.user_attrs.get("environment", {})
    spent = seconds_spent(trial)
    facts = {
        "point by hand": plain(label or "") + plain(f" (shortened: {shortened})" if shortened else ""),
        "config": plain(_config_words(trial)),
        "device": plain(f"{_device(trial)}, threads: {environment.get('threads', '?')}") if environment else "",
        "training time": f"{duration(spent)}, {spent / len(curve):.3g} s an epoch" if curve else "",
        "commit": plain(environment.get("commit") or ""),
    }
    return _joined(_ending(trial), _curve_table(curve), _facts(facts), _traceback(trial))


def _ending(trial: FrozenTrial) -> str:
    """How a trial ended, or how far it is, in a sentence."""
    curve = trial.user_attrs.get("curve", [])
    epochs = trial.user_attrs.get("config", {}).get("epochs", "?")
    reason = plain(trial.user_attrs.get("reason", ""))
    match trial.state:
        case TrialState.COMPLETE:
            return f"**Complete**: {trial.value:.2%} validation accuracy in the best of {len(curve)} epochs."
        case TrialState.PRUNED:
            return f"**Pruned** after {len(curve)} of {epochs} epochs: {reason}."
        case TrialState.FAIL:
            return f"**Failed** after {len(curve)} of {epochs} epochs: {reason or 'the reason is not known'}."
        case TrialState.RUNNING:
            return f"**Running**: {len(curve)} of {epochs} epochs are done."
    return f"**Waiting**, to go on after epoch {len(curve)}." if curve else "**Waiting** to be trained."


def _curve_table(curve: Sequence[Mapping[str, Any]]) -> str:
    """The first, the best and the last epoch of a learning curve."""
    if not curve:
        return ""
    best = max(curve, key=lambda point: (point["validation_accuracy"], -point["epoch"]))
    named: dict[int, list[str]] = {}
    for name, point in (("first", curve[0]), ("best", best), ("last", curve[-1])):
        named.setdefault(point["epoch"], []).append(name)
    return _table(
        ("epoch", "", "training loss", "training accuracy", "validation loss", "validation accuracy"),
        [
            (
                str(point["epoch"]), ", ".join(named[point["epoch"]]), f"{point['train_loss']:.4f}",
                f"{point['train_accuracy']:.2%}", f"{point['validation_loss']:.4f}",
                f"{point['validation_accuracy']:.2%}",
            )
            for point in curve
            if point["epoch"] in named
        ],
    )  # fmt: skip


def _traceback(trial: FrozenTrial) -> str:
    """The end of what the trial failed with, in a block that nothing in it can end."""
    lines = str(trial.user_attrs.get("traceback", "")).strip().splitlines()
    if not lines:
        return ""
    shown = "\n".join(lines[-TRACEBACK_LINES:])
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=2))
    return f"{fence}\n{shown}\n{fence}"
