"""How to get a study's numbers again: the sweep as a file, the commands, and what else a number depends on."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from cifar_sweep.errors import UsageError
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.sweep.file import find, load
from cifar_sweep.sweep.sweep import Sweep


@dataclass(frozen=True)
class Reproduction:
    """What a reader needs to get the numbers again."""

    commands: tuple[tuple[str, str], ...]  # each with what it does
    file: str  # the name under which the first command expects `sweep`; empty where it names a sweep by its name
    sweep: str  # the sweep as it was run, in TOML
    facts: Mapping[str, str]  # versions, commit, data, devices and seeds, by name


def reproduction_of(study: SweepStudy, best: TrialRecord | None) -> Reproduction:
    """What was run, and how to run it again; `best` is the trial to be trained again, if there is one."""
    run, file = _run_command(study)
    whole = "the sweep as it is now; it was extended" if study.changes else "the whole sweep again"
    commands = [(run, whole)]
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
        words += ["--data", "FOLDER" if Path(source).is_absolute() else source]
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


def _facts(study: SweepStudy, best: TrialRecord | None) -> dict[str, str]:
    trained = [trial for trial in study.trials() if trial.environment]
    environments = [trial.environment for trial in trained if trial.environment]
    seeds = f"sweep {study.sweep.seed}"
    if best is not None:
        settings = best.settings
        seeds += f", best trial {settings['seed']}, order of its batches {settings['data_seed']}"
    known = {
        "data": f"{study.data['name']}, fingerprint {study.data['fingerprint']}",
        "images": str(study.data.get("notes", "")),
        "seeds": seeds,
        "commit": _distinct(each.commit or "an installed package" for each in environments),
        "versions": _distinct(f"{name} {version}" for each in environments for name, version in each.versions.items()),
        "device": _distinct(each.device for each in environments),
        "threads": _distinct(str(each.threads) for each in environments),
        "precision": _distinct(str(trial.settings["precision"]) for trial in trained),
    }
    return {name: fact for name, fact in known.items() if fact}


def _distinct(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def sweep_toml(sweep: Sweep) -> str:
    """A sweep as a file that `cifar-sweep run` takes; what has its default is left out."""
    plain = sweep.model_dump(
        mode="json", exclude_defaults=True, exclude={"name": True, "enqueue": {"__all__": {"whole"}}}
    )
    if sweep.given:
        plain.pop("trials", None)  # it has as many as points
    for name, settings in (("sampler", sweep.sampler), ("pruner", sweep.pruner)):
        # The name, too, where it is the default.
        plain[name] = {"name": settings.name} | plain.get(name, {})
    return tomli_w.dumps(plain)
