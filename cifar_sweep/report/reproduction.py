"""How to get a study's numbers again: the sweep as a file, the commands, and what else a number depends on."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from cifar_sweep.errors import UsageError
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.sweep import Sweep


@dataclass(frozen=True)
class Reproduction:
    """What a reader needs to get the numbers again.

    Attributes:
        commands: each with what it does.
        file: the name under which the first command expects `sweep`; empty where it names a sweep by its name.
        sweep: the sweep as it was run, in TOML.
        facts: versions, commit, data, devices and seeds, by name.
    """

    commands: tuple[tuple[str, str], ...]
    file: str
    sweep: str
    facts: Mapping[str, str]


def reproduction_of(study: SweepStudy, best: FrozenTrial | None) -> Reproduction:
    """What was run, and how to run it again; `best` is the trial to be trained again, if there is one."""
    run, file = _run_command(study)
    commands = [(run, "the whole sweep again")]
    if best is not None:
        folder = f"exports/{study.name}-{best.number}"
        commands += [
            (f"cifar-sweep export {study.name} --trial {best.number}", "the best trial: config, weights, model card"),
            (f"cifar-sweep train {folder}", "trains it again: the same numbers on the same machine and thread count"),
        ]
    return Reproduction(tuple(commands), file, sweep_toml(study.sweep), _facts(study, best))


def _run_command(study: SweepStudy) -> tuple[str, str]:
    """The command that runs the sweep again, and the file that it needs, if it does."""
    sweep = study.sweep
    named, options = _named_command(sweep)
    words = ["cifar-sweep", "run", named or f"{sweep.name}.toml", *options]
    # Without its name there would be two studies of one name, where the sweep's file is named after it.
    words += ["--study", study.name] if study.name != sweep.name else []
    source = str(study.data.get("source", "auto"))
    if source != "auto":
        # A folder of its maker's is of no use to others, and none of their business.
        words += ["--data", source if source.startswith("synthetic") else "FOLDER"]
    return shlex.join(words), "" if named else f"{sweep.name}.toml"


def _named_command(sweep: Sweep) -> tuple[str, list[str]]:
    """The name and options that give `sweep`, where there is a file of that name which does; else an empty name."""
    changes = {} if sweep.given else {"trials": sweep.trials, "seed": sweep.seed}
    for preview in (False, True):
        try:
            whole = load(find(sweep.name), preview=preview)
            same = load(find(sweep.name), changes=changes, preview=preview)
        except UsageError:
            return "", []
        if same == sweep:
            options = [f"--{name}={value}" for name, value in changes.items() if getattr(whole, name) != value]
            return sweep.name, (["--preview"] if preview else []) + options
    return "", []


def _facts(study: SweepStudy, best: FrozenTrial | None) -> dict[str, str]:
    trained = [trial for trial in study.trials() if trial.user_attrs.get("environment")]
    environments = [trial.user_attrs["environment"] for trial in trained]
    versions = [f"{name} {version}" for each in environments for name, version in each["versions"].items()]
    config: Mapping[str, Any] = best.user_attrs["config"] if best else {}
    seeds = [f"sweep {study.sweep.seed}"]
    seeds += [f"best trial {config['seed']}, order of its batches {config['data_seed']}"] if config else []
    known = {
        "data": f"{study.data['name']}, fingerprint {study.data['fingerprint']}",
        "seeds": ", ".join(seeds),
        "commit": _distinct(each["commit"] or "an installed package" for each in environments),
        "versions": _distinct(versions),
        "device": _distinct(each["device"] for each in environments),
        "threads": _distinct(str(each["threads"]) for each in environments),
        "precision": _distinct(str(trial.user_attrs["config"]["precision"]) for trial in trained),
    }
    return {name: fact for name, fact in known.items() if fact}


def _distinct(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def sweep_toml(sweep: Sweep) -> str:
    """A sweep as a file that `cifar-sweep run` takes; what has its default is left out."""
    plain = sweep.model_dump(mode="json", exclude_defaults=True)
    heads = {name: plain[name] for name in ("description", "trials", "seed", "keep_weights", "keep_megabytes")
             if name in plain}  # fmt: skip
    if sweep.given:
        heads.pop("trials", None)  # it has as many as points
    lines = [f"{name} = {_toml(value)}" for name, value in heads.items()]
    lines += [f"{name} = {_toml(_settings(getattr(sweep, name)))}" for name in ("sampler", "pruner")]
    for table in ("fixed", "space"):
        if plain.get(table):
            lines += ["", f"[{table}]", *_pairs(plain[table])]
    for table in ("enqueue", "ensemble"):
        for entry in plain.get(table, []):
            lines += ["", f"[[{table}]]", *_pairs({key: value for key, value in entry.items() if key != "whole"})]
    if plain.get("preview"):
        lines += ["", "[preview]", *_pairs(plain["preview"])]
    return "\n".join(lines) + "\n"


def _settings(settings: BaseModel) -> dict[str, Any]:
    """The settings of a sampler or pruner, its name among them though it may be the default."""
    return {"name": getattr(settings, "name"), **settings.model_dump(mode="json", exclude_defaults=True)}  # noqa: B009


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items()]


def _toml(value: Any) -> str:
    """A plain value, a list or a table of such: as in JSON, but for tables, and for DEL, which TOML wants escaped."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
