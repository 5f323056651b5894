"""Reading sweeps of other programs: W&B (YAML, script, notebook), NNI and Hydra. Nothing of them is run."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from cifar_sweep.convert.foreign import Asked, Foreign
from cifar_sweep.convert.script import Exponent, Unread, of_notebook, of_script
from cifar_sweep.errors import UsageError, one_line

TAKEN = "a W&B sweep (YAML, or a dict in a script or notebook), an NNI search space (JSON), a Hydra sweep (YAML)"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_OF_WANDB = ("method", "metric", "parameters", "early_terminate", "run_cap", "name", "description")


def read(path: Path) -> Foreign:
    """The sweep in a file. Raises UsageError where there is none of the kinds in `TAKEN`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the file cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        foreign = _sweep_in(_plain(_content(path, text)))
    except (ArithmeticError, ValueError, TypeError, RecursionError, MemoryError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: the file cannot be understood: {one_line(error)}; accepted: {TAKEN}.") from None
    if foreign is None or not foreign.asked:
        raise UsageError(f"{path}: there is no sweep in it that is known here; accepted: {TAKEN}.")
    return foreign


def _sweep_in(found: Any) -> Foreign | None:
    """The sweep in plain data; None where there is none."""
    if isinstance(found, dict):
        if isinstance(space := found.get("searchSpace", found.get("search_space", found)), dict) and _is_nni(space):
            return _nni(space, found if space is not found else {})
        if isinstance(hydra := found.get("hydra"), dict) and isinstance(hydra.get("sweeper"), dict):
            return _hydra(found, hydra["sweeper"])
        if isinstance(found.get("parameters"), dict):
            return _wandb(found)
    return None


def _content(path: Path, text: str) -> Any:
    try:
        if path.suffix in (".py", ".ipynb"):
            return of_script(of_notebook(text) if path.suffix == ".ipynb" else text)
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (SyntaxError, ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{path}: the file cannot be understood: {said}; accepted: {TAKEN}.") from None


MOST_PARTS = 100_000  # of a file; aliases of aliases may stand for any number


def _plain(content: Any, counted: Iterator[int] | None = None) -> Any:
    """The same with numbers that YAML takes for texts, such as 1e-4, as numbers; ValueError where it has no end."""
    counted = counted or count()
    if next(counted) > MOST_PARTS:
        raise ValueError(f"it has more than {MOST_PARTS:,} parts")
    if isinstance(content, dict):
        return {" ".join(str(key).split()): _plain(value, counted) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(each, counted) for each in content]
    if isinstance(content, str) and not isinstance(content, Unread) and _NUMBER.fullmatch(content):
        content = int(content) if content.lstrip("+-").isdigit() else float(content)
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"{content} is no number to search")
    return content


# W&B


def _wandb(found: Mapping[str, Any]) -> Foreign:
    metric = found.get("metric") if isinstance(found.get("metric"), dict) else {}
    trials, stopping = found.get("run_cap"), found.get("early_terminate")
    others = {key: value for key, value in found.items() if key not in _OF_WANDB}
    others |= {f"metric.{key}": value for key, value in (metric or {}).items() if key not in ("name", "goal")}
    return Foreign(
        "W&B",
        [_of_wandb(name, spec) for name, spec in _flat(found["parameters"])],
        method=str(found.get("method", "")),
        trials=int(trials) if isinstance(trials, (int, float)) else None,
        metric=str((metric or {}).get("name", "")),
        goal=str((metric or {}).get("goal", "")),
        description=str(found.get("description") or found.get("name") or ""),
        stopping=stopping if isinstance(stopping, dict) else {},
        others=others,
    )


def _flat(parameters: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters, those of nested ones with dots in their names."""
    for name, spec in parameters.items():
        if isinstance(spec, dict) and isinstance(spec.get("parameters"), dict):
            yield from _flat(spec["parameters"], f"{above}{name}.")
        else:
            yield above + name, spec


def _of_wandb(name: str, spec: Any) -> Asked:
    text = _shown(spec)
    if any(isinstance(part, Unread) for part in _leaves(spec)):
        return Asked(name, text, reason="it is computed by the program, which is not run here")
    if not isinstance(spec, dict):
        return Asked(name, text, reason="it has neither value, values nor a distribution, as W&B takes them")
    if "value" in spec:
        return Asked(name, text, values=[spec["value"]])
    if isinstance(spec.get("values"), list):
        note = "the values' probabilities" if "probabilities" in spec else ""
        return Asked(name, text, values=spec["values"], note=note)
    low, high, kind = spec.get("min"), spec.get("max"), str(spec.get("distribution", ""))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        said = f"a distribution without ends ({kind})" if kind else "it has neither value, values nor both ends"
        return Asked(name, text, reason=said)
    is_log, values = "log" in kind, kind.endswith("_values")
    whole = kind == "int_uniform" or (not kind and isinstance(low, int) and isinstance(high, int))  # as W&B takes it
    step = spec.get("q", 1 if whole or kind.startswith("q_") else None)
    # Ends that have no logarithm can only be exponents; of others nothing tells. The inverse of x is log-uniform where
    # x is, but its exponents are those of 1 / x.
    exponents = 0.0 if values or not is_log else 1 / math.e if kind.startswith("inv") else math.e
    unclear = bool(exponents) and low > 0 and not isinstance(low, Exponent)
    if "q" in kind and not is_log:
        low, high = _multiples(low, high, step)
    return Asked(name, text, low=low, high=high, log=is_log, step=step, exponents=exponents, unclear=unclear)


def _multiples(low: float, high: float, step: Any) -> tuple[float, float]:
    """The ends of a range of which only multiples of a step are drawn."""
    if not isinstance(step, (int, float)) or step <= 0:
        return low, high  # what is wrong with it is said later
    ends = (step * math.ceil(round(low / step, 9)), step * math.floor(round(high / step, 9)))
    return round(ends[0], 10), round(ends[1], 10)


def _leaves(content: Any) -> Iterator[Any]:
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    if parts is None:
        yield content
    for part in parts or ():
        yield from _leaves(part)


def _shown(spec: Any) -> str:
    return " ".join(json.dumps(spec, default=str).split())


# NNI


def _is_nni(space: Any) -> bool:
    return (
        isinstance(space, dict)
        and bool(space)
        and all(isinstance(spec, dict) and {"_type", "_value"} <= spec.keys() for spec in space.values())
    )


def _nni(space: Mapping[str, Any], around: Mapping[str, Any]) -> Foreign:
    tuner = around.get("tuner")
    tuner = tuner if isinstance(tuner, dict) else {}
    method = str(tuner.get("name", tuner.get("builtinTunerName", "")))
    told = next((tuner[key] for key in ("classArgs", "class_args") if isinstance(tuner.get(key), dict)), tuner)
    trials = around.get("maxTrialNumber", around.get("max_trial_number"))
    read = ("searchSpace", "search_space", "tuner", "maxTrialNumber", "max_trial_number")
    return Foreign(
        "NNI",
        [_of_nni(name, spec) for name, spec in space.items()],
        method=method,
        trials=int(trials) if isinstance(trials, (int, float)) else None,
        goal=str(told.get("optimize_mode", "")),
        others={key: value for key, value in around.items() if key not in read},
    )


def _of_nni(name: str, spec: Mapping[str, Any]) -> Asked:
    kind, value, text = str(spec["_type"]), spec["_value"], _shown(spec)
    numbers = isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)
    if kind == "choice" and isinstance(value, list):
        if any(isinstance(each, dict) for each in value):
            return Asked(name, text, reason="its choices have parameters of their own")
        return Asked(name, text, values=value)
    if kind in ("uniform", "loguniform", "quniform", "qloguniform") and numbers and len(value) > 1:
        step = value[2] if kind.startswith("q") and len(value) > 2 else None
        low, high = value[:2] if step is None or "log" in kind else _multiples(value[0], value[1], step)
        return Asked(name, text, low=low, high=high, log="log" in kind, step=step)
    if kind == "randint" and numbers and len(value) == 2:
        return Asked(name, text, low=int(value[0]), high=int(value[1]) - 1, step=1)  # the upper end is not included
    return Asked(
        name, text, reason=f"{'a distribution without ends' if 'normal' in kind else 'not known here'} ({kind})"
    )


# Hydra

_METRICS_OF_HYDRA = ("optimized_metric", "objective")
_TAKES = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


def _hydra(found: Mapping[str, Any], sweeper: Mapping[str, Any]) -> Foreign:
    params, older = sweeper.get("params") or {}, sweeper.get("search_space") or {}
    by_optuna = "optuna" in json.dumps([found.get("defaults"), sweeper], default=str)
    sampler = sweeper["sampler"] if isinstance(sweeper.get("sampler"), dict) else {}
    numbers = {key: value for key, value in sampler.items() if key in ("seed", "n_startup_trials") and _is_whole(value)}
    direction = sweeper.get("direction") if isinstance(sweeper.get("direction"), str) else ""
    read = ("params", "search_space", "sampler", "n_trials", "_target_", *(["direction"] if direction else []))
    rest = {key: value for key, value in sampler.items() if key not in numbers and key != "_target_"}
    others = {key: value for key, value in {**sweeper, "sampler": rest}.items() if value not in (None, {}, "")}
    above = {key: value for key, value in found.items() if key not in ("hydra", "defaults", *_METRICS_OF_HYDRA)}
    above |= {f"hydra.{key}": value for key, value in found["hydra"].items() if key != "sweeper"}
    if defaults := [
        each for each in found.get("defaults") or () if "hydra/sweeper" not in str(each) and each != "_self_"
    ]:
        above["defaults"] = defaults
    return Foreign(
        "Hydra",
        [_of_hydra(name, spec, by_optuna=by_optuna) for name, spec in {**older, **params}.items()],
        method=str(sampler.get("_target_", "")).rpartition(".")[2].lower()
        or _sampler_in(found.get("defaults"), by_optuna),
        trials=int(sweeper["n_trials"]) if _is_whole(sweeper.get("n_trials")) else None,
        seed=numbers.get("seed"),
        startup=numbers.get("n_startup_trials"),
        metric=next((str(found[key]) for key in _METRICS_OF_HYDRA if found.get(key)), ""),
        goal=direction or "",
        others={key: value for key, value in others.items() if key not in read or key == "sampler"} | above,
    )


def _sampler_in(defaults: Any, by_optuna: bool) -> str:
    """The sampler that a list of defaults names; the usual one where it names none."""
    named = [entry for entry in defaults or () if isinstance(entry, dict)] if isinstance(defaults, list) else []
    for entry in named:
        for key, value in entry.items():
            if key.endswith("hydra/sweeper/sampler") and value:
                return str(value)
    return "tpe" if by_optuna else "grid"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _of_hydra(name: str, spec: Any, *, by_optuna: bool) -> Asked:
    name, text = name.lstrip("+"), _shown(spec)
    if isinstance(spec, dict):
        if "choices" in spec:
            return Asked(name, text, values=spec["choices"])
        low, high = spec.get("low"), spec.get("high")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            step = spec.get("step", 1 if spec.get("type") == "int" else None)
            return Asked(name, text, low=low, high=high, log=bool(spec.get("log")), step=step)
        return Asked(name, text, reason="a distribution without ends")
    if not isinstance(spec, str):
        return Asked(name, text, values=spec if isinstance(spec, list) else [spec])
    return _of_override(name, spec.strip(), text, by_optuna=by_optuna)


def _of_override(name: str, spec: str, text: str, *, by_optuna: bool) -> Asked:
    """A parameter in the words of Hydra's overrides: ``choice(a, b)``, ``tag(log, interval(1e-5, 1e-1))``, ``1,2``."""
    taken = _TAKES.fullmatch(spec)
    if taken is None:
        return Asked(name, text, values=_parts(spec))
    inner = taken[2]
    match taken[1]:
        case "choice":
            return Asked(name, text, values=_parts(inner))
        case "interval" | "range":
            named: dict[str, Any] = {"start": 0, "stop": None, "step": 1}
            named |= dict(zip(named, _numbers(inner), strict=False))
            named |= {key: yaml.safe_load(value) for key, value in _NAMED.findall(inner)}
            low, high, step = named.values()
            if all(isinstance(each, (int, float)) for each in (low, high, step)) and step > 0:
                if taken[1] == "interval":
                    return Asked(name, text, low=float(low), high=float(high))
                # Hydra's own range ends before it.
                last = high if by_optuna else round(low + step * (math.ceil(round((high - low) / step, 9)) - 1), 10)
                return Asked(name, text, low=low, high=last, step=step)
        case "tag":
            *tags, rest = _parts(inner)
            found = _of_override(name, str(rest), text, by_optuna=by_optuna)
            return Asked(**{**vars(found), "log": found.log or "log" in tags})
        case "int" | "float" | "shuffle" | "sort":
            found = _of_override(name, inner, text, by_optuna=by_optuna)
            return Asked(**{**vars(found), "step": 1 if taken[1] == "int" and not found.log else found.step})
    return Asked(name, text, reason=f"{taken[1]}() is not known here")


_NAMED = re.compile(r"\b(start|stop|step)\s*=\s*([^,\s]+)")


def _numbers(text: str) -> list[float]:
    """The numbers between commas; a single one of a range is its end."""
    found = [part for part in _parts(text) if isinstance(part, (int, float))]
    return [0, *found] if len(found) == 1 else found


def _parts(text: str) -> list[Any]:
    """What stands between commas that are in no bracket, as YAML takes it."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [_plain(yaml.safe_load(part)) if "(" not in part else part.strip() for part in parts]
