"""Sweep files: finding one, loading it, and changing it by options."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from cifar_sweep.errors import UsageError, nearest
from cifar_sweep.files import read_toml
from cifar_sweep.parameters import NAMES, PARAMETERS, Value, check_parameter
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import (
    SHORTENS,
    Cases,
    Choices,
    Point,
    Range,
    Sweep,
    contains,
    listed,
    trained_values,
    values_of,
    with_name,
)
from cifar_sweep.training_parameters import SCHEDULE_LENGTHS

SHIPPED = (Path(__file__).parent.parent / "sweeps", Path(__file__).parent.parent.parent / "sweeps")
Changes = Mapping[str, Value] | None
_SETTABLE = ("trials", "seed", "keep_weights", "keep_megabytes", "strategy", "sampler", "pruner", "stop")


def names() -> dict[str, Path]:
    """Every sweep that can be run by name: those of ``sweeps/`` here, then those that come with the package."""
    folders = (*reversed(SHIPPED), Path("sweeps"))  # of one name the last file counts
    found = {path.stem: path for folder in folders for path in folder.glob("*.toml")}
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """The file of the sweep `name`, which may be a path. Raises UsageError where there is none."""
    known = names()
    if name.endswith((".toml", ".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise UsageError(f"{name}: there is no such sweep file; give a path to a TOML file or one of {listed(known)}.")
    if name not in known:
        raise UsageError(f"sweep {name!r} is unknown; {nearest(name, known)}; or give a path to a TOML file.")
    return known[name]


def load(path: Path, *, changes: Changes = None, preview: bool = False, only: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply its preview if asked, then `changes` as `--set` gives them.

    A change named like a parameter fixes it; any other names a key of the sweep, with a dot below a table. Of a sweep
    of given points, `only` takes those labels; `epochs` and `train_images` then shorten each point that has more.
    Raises UsageError where the file is not TOML, or a key or value is not accepted.
    """
    try:
        raw = read_toml(path)
    except OSError as error:
        raise UsageError(f"{path}: the sweep file cannot be read: {error.strerror}.") from None
    name = normalize("NFC", os.fsencode(path.stem).decode(errors="replace"))  # whatever the locale takes it for
    return from_mapping({"name": name} | raw, where=str(path), changes=changes, preview=preview, only=only)


def from_mapping(
    raw: Mapping[str, Any], *, where: str, changes: Changes = None, preview: bool = False, only: Sequence[str] = ()
) -> Sweep:
    """A sweep from what a file would hold, and its name; the rest as in `load`. `where` begins every message."""
    sweep = parse(raw, where=where)
    if any(point.whole for point in sweep.enqueue):
        raise UsageError(f"{where}: [[enqueue]]: whole is written by a run that shortens a point, not in a file.")
    if sweep.given and "trials" in raw:
        idle = "trials does nothing for sampler 'given'"
        raise UsageError(f"{where}: {idle}; it has as many trials as [[enqueue]] points.")
    labels = [point.label for point in sweep.enqueue]
    for ensemble in sweep.ensemble:  # here, as with `only` some of its points are not there afterwards
        for member in (label for label in ensemble.members if label not in labels):
            place = f"{where}: [[ensemble]] {ensemble.label}"
            raise UsageError(f"{place}: there is no point {member!r}; {nearest(member, labels)}.")
    sweep = _only(sweep, only)
    if preview:
        sweep = _previewed(sweep, where=f"{where}: [preview]")
    return _changed(sweep, changes or {}, where="--set")


def _only(sweep: Sweep, labels: Sequence[str]) -> Sweep:
    """`sweep` with the given points of these labels alone; a claimed ensemble's label stands for its members."""
    if not labels:
        return sweep
    if not sweep.given:
        raise UsageError(f"--only: sweep {sweep.name!r} has no given points; accepted for sweeps of sampler 'given'.")
    ensembles = {ensemble.label: ensemble.members for ensemble in sweep.ensemble}
    known = {point.label: point for point in sweep.enqueue}
    chosen: dict[str, Point] = {}
    for label in labels:
        if label not in known and label not in ensembles:
            raise UsageError(f"--only: sweep {sweep.name!r} has no {label!r}; {nearest(label, [*known, *ensembles])}.")
        for member in ensembles.get(label, [label]):
            chosen[member] = known[member]
    return sweep.model_copy(update={"enqueue": list(chosen.values())})


def _previewed(sweep: Sweep, *, where: str) -> Sweep:
    """`sweep` as its [preview] has it; of given points the first ones.

    Points that are enqueued take half of its trials at most: the rest shows what the sampler chooses.
    """
    fixed = sweep.preview.params()
    if not sweep.given:
        changed = _changed(sweep, {"trials": sweep.preview.trials, **fixed}, where=where)
        return changed.model_copy(update={"enqueue": changed.enqueue[: changed.trials // 2]})
    return _changed(sweep.model_copy(update={"enqueue": sweep.enqueue[: sweep.preview.trials]}), fixed, where=where)


def cut(sweep: Sweep, share: float, *, images: int, least_images: int, least_epochs: int) -> Sweep:
    """`sweep` with this share of its epochs and of its images, as far as these are not below the least.

    `images` is how many training images there are; a quarter as many are validated on. Of what is searched the upper
    end is cut, and hand points above it are left out. A schedule's fixed lengths are cut with fixed epochs; where one
    of them is searched and epochs are not, epochs stay whole: its values would mean something else.
    """
    wholes = {
        "epochs": (0, least_epochs),
        "train_images": (images, max(least_images, longest(sweep, "batch_size"))),
        "validation_images": (images // 4, 500),
    }
    changes: dict[str, Value] = {}
    for name, (all_there_are, least) in wholes.items():
        whole = longest(sweep, name) or all_there_are
        shorter = max(_rounded(share * whole), least)
        if shorter >= whole:
            continue
        if sweep.given:
            changes |= {name: shorter} if name in sweep.space else {}
        elif name in sweep.space:
            sweep = _below(sweep, name, shorter)
        elif name != "epochs" or sweep.space.keys().isdisjoint(SCHEDULE_LENGTHS):
            changes[name] = shorter
            if name == "epochs":
                changes |= _lengths_cut(sweep, shorter / whole)
    return _changed(sweep, changes, where="--hours")


def _lengths_cut(sweep: Sweep, share: float) -> dict[str, Value]:
    """The fixed lengths of a sweep's schedules, in epochs, cut to this share; each is 1 at least."""
    found: dict[str, Value] = {}
    for name in SCHEDULE_LENGTHS:
        value = sweep.fixed.get(name, PARAMETERS[name].default)
        parts = [max(1, round(share * int(part))) for part in str(value).split(",") if int(part)]
        acting = PARAMETERS[name].only_if.get("schedule", ())
        acts = not acting or set(acting) & set(values_of(sweep, "schedule"))
        never_decays = name == "step_size" and {"step_size", "gamma"}.isdisjoint([*sweep.fixed, *sweep.space])
        if acts and parts and not never_decays:
            found[name] = parts[0] if len(parts) == 1 else ",".join(map(str, parts))
    return found


def _rounded(count: float) -> int:
    """A count; a large one to two digits."""
    return round(count) if count < 1000 else int(float(f"{count:.1e}"))


def longest(sweep: Sweep, name: str) -> int:
    """The largest value of a whole number in this sweep; 0 where one of them is 0, which means all there are."""
    values = trained_values(sweep, name)
    return 0 if 0 in values else max(map(int, values))


def _below(sweep: Sweep, name: str, most: int) -> Sweep:
    """`sweep` with a searched number of at most `most`, or of the smallest there is, and the hand points that fit."""
    domain = sweep.space[name]
    assert not isinstance(domain, Cases)  # what decides how long a trial is has none
    if isinstance(domain, Choices):
        few = [choice for choice in domain.choices if int(choice) <= most]
        kept: Range | Choices = Choices(choices=few or [min(domain.choices, key=int)])
    else:
        low, step = int(domain.low), domain.step or 1
        high = max(low, low + (most - low) // step * step)
        kept = domain.model_copy(update={"high": 2 ** (max(most, low).bit_length() - 1) if domain.base2 else high})
    points = [point for point in sweep.enqueue if name not in point.params() or contains(kept, point.params()[name])]
    return sweep.model_copy(update={"space": sweep.space | {name: kept}, "enqueue": points})


def _changed(sweep: Sweep, changes: Mapping[str, Value], *, where: str) -> Sweep:
    """`sweep` with parameters fixed and keys replaced."""
    raw = sweep.model_dump(mode="json", exclude_none=True)
    if "trials" not in sweep.model_fields_set:
        raw.pop("trials")  # a grid's are then all of its points
    if {"strategy", "sampler", "pruner"} & {key.partition(".")[0] for key in changes}:
        # Who names a sampler or a pruner means strategy optuna; what another strategy brought goes with it.
        strategy = changes.get("strategy", "optuna")
        if strategy != sweep.strategy and not sweep.given:
            raw = {key: each for key, each in raw.items() if key not in ("sampler", "pruner")} | {"strategy": strategy}
    for key, value in changes.items():
        table, _, inner = key.rpartition(".")
        if sweep.given:
            _check_change_of_given(sweep, key, where=where)
        if sweep.given and key in SHORTENS:
            check_parameter(key, value, where=where)
            for point in raw["enqueue"]:
                own = point.get(key, PARAMETERS[key].default)
                # The smaller one; 0 (of train_images) is all there are.
                point[key] = min(own, value) if own and value else own or value
                if point[key] != own:
                    point["whole"].setdefault(key, own)
        elif key in PARAMETERS:
            raw["space"].pop(key, None)
            raw["fixed"][key] = check_parameter(key, value, where=where)
            for domain in raw["space"].values():  # what cannot come any more
                if "cases" in domain:
                    domain["cases"] = [case for case in domain["cases"] if value in case["only_if"].get(key, [value])]
        elif key in _SETTABLE:
            raw[key] = value
        elif table in ("sampler", "pruner") and inner:
            settings = with_name(raw.get(table, {}))
            raw[table] = settings | {inner: value} if isinstance(settings, dict) else settings
        else:
            raise UsageError(f"{where}: there is no key {key!r}; {nearest(key, [*NAMES, *_SETTABLE])}.")
    fixed = raw["fixed"]
    # A hand point that contradicts what was just fixed would be a second name for another point.
    agree = (point for point in raw["enqueue"] if all(point[name] == fixed[name] for name in point if name in fixed))
    raw["enqueue"] = list(agree)
    return parse(raw, where=where)


def _check_change_of_given(sweep: Sweep, key: str, *, where: str) -> None:
    """Given points are run as they are; they can be shortened, where they say how long they are."""
    name = repr(sweep.name)
    if key == "trials":
        raise UsageError(f"{where}: sweep {name} has given points; choose among them with --only.")
    if key in SHORTENS and key not in sweep.space:
        raise UsageError(f"{where}: {key} is not in [space] of {name}, so its given points cannot be shortened.")
    if key in PARAMETERS and key not in (*SHORTENS, "precision", "validation_images"):
        accepted = "epochs and train_images, which shorten them, precision and validation_images"
        raise UsageError(f"{where}: sweep {name} runs its given points as they are; accepted: {accepted}.")
