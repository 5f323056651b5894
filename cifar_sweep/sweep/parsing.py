"""From the text of a sweep file to a checked `Sweep`: errors name the file, the table and the key."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from cifar_sweep.config import decides_shape
from cifar_sweep.errors import UsageError, nearest
from cifar_sweep.parameters import (
    BY_LAYER,
    IDLE,
    MOST_LAYERS,
    NAMES,
    NORMS,
    OWN,
    PARAMETERS,
    Value,
    applies,
    base_of,
    check_parameter,
    is_own,
    known_beside,
    traits,
)
from cifar_sweep.sweep.grid import grid
from cifar_sweep.sweep.shapes import check_layers
from cifar_sweep.sweep.sweep import (
    Cases,
    Choices,
    PrunerSettings,
    Range,
    SamplerSettings,
    Sweep,
    contains,
    in_toml,
    listed,
    parts_of,
    values_of,
)

# What is accepted instead, by the type of pydantic's complaint; braces are filled from its context.
_ACCEPTED = {
    "int_type": "a whole number",
    "bool_type": "true or false",
    "float_type": "a number",
    "string_type": "a text in quotes",
    "string_too_short": "a text that is not empty",
    "number": "a number",
    "plain": "a number, a text, true or false",
    "list_type": "a list",
    "confirm": "two whole numbers from 1, how many of the best trials and how many seeds each, as in [5, 3]",
    "too_short": "at least one value",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than_equal": "a whole number of at least {ge}",
    "greater_than": "a number above {gt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "union_tag_not_found": "a table with low and high, or with choices; a single value belongs in [fixed]",
}
# What other programs call these keys, and what is meant here.
_MEANT = {
    "values": "choices", "value": "a line in [fixed]", "min": "low", "max": "high", "q": "step",
    "distribution": "log = true, base2 = true or neither", "method": "sampler", "algorithm": "sampler",
    "parameters": "[space]", "params": "[space]", "search_space": "[space]", "early_terminate": "pruner",
    "scheduler": "pruner", "n_trials": "trials", "num_trials": "trials", "num_samples": "trials", "run_cap": "trials",
    "metric": "one word, 'accuracy', 'loss', 'f1' or 'top5', in one place",
    "direction": "not needed: what is best follows from the metric",
    "defaults": "not needed", "hydra": "not needed",
}  # fmt: skip
MOST_STEPS = 50
# What trials are compared by has to be the same for all: by the parameter, what that is, and where it is accepted.
_SAME_FOR_ALL = {
    "validation_images": ("their images", "in [fixed] and [preview]"),
    "image_size": ("their images", "in [fixed]"),
    "metric": ("it", "above all tables, as metric = 'loss'"),
}
_SETTINGS: dict[str, type[BaseModel]] = {"sampler": SamplerSettings, "pruner": PrunerSettings}


def parse(raw: Mapping[str, Any], *, where: str) -> Sweep:
    """A sweep from plain data. Raises UsageError where a key or value is not accepted; `where` begins its message."""
    try:
        sweep = Sweep.model_validate(_with_texts(raw))
    except ValidationError as error:
        raise UsageError(_sentence(error, raw, where=where)) from None
    try:
        _check_strategy(sweep)
        _check_given(sweep)
        _check_parameters(sweep)
        if sweep.sampler.name == "grid":
            there = len(grid(sweep))
            asked = sweep.trials if "trials" in sweep.model_fields_set else there
            sweep = sweep.model_copy(update={"trials": min(asked, there)})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return sweep


def _with_texts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with lists of values by layer as the texts that they are kept as."""

    def text(name: str, value: Any) -> Any:
        takes = name in PARAMETERS and PARAMETERS[name].listed and isinstance(value, list)
        plain = takes and value and not any(isinstance(entry, (list, dict)) for entry in value)
        return ",".join(str(entry) for entry in value) if plain else value

    def texts(table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        return {name: text(name, value) for name, value in table.items()}

    def domain(name: str, table: Any) -> Any:
        if not isinstance(table, dict) or not isinstance(choices := table.get("choices"), list):
            return table
        return table | {"choices": [text(name, choice) for choice in choices]}

    raw = {key: _flat(table) if key in ("fixed", "preview", "space") else table for key, table in raw.items()}
    changed: dict[str, Any] = {key: texts(raw[key]) for key in ("fixed", "preview") if key in raw}
    if isinstance(points := raw.get("enqueue"), list):
        changed["enqueue"] = [texts(_flat(point)) for point in points]
    if isinstance(space := raw.get("space"), dict):
        changed["space"] = {name: domain(name, table) for name, table in space.items()}
    return dict(raw) | changed


def _flat(table: Any) -> Any:
    """A table with the parameters of a user's own network, ``net.width``, under their whole names."""
    if not isinstance(table, dict) or not isinstance(own := table.get("net"), dict):
        return table
    rest = {name: value for name, value in table.items() if name != "net"}
    return rest | {f"{OWN}{name}": value for name, value in own.items()}


def _check_strategy(sweep: Sweep) -> None:
    """Strategy auto chooses and prunes by itself; a sampler and a pruner of Optuna belong to strategy optuna."""
    if sweep.stop == "auto" and sweep.strategy != "auto":
        raise UsageError("stop = 'auto' needs the model of strategy = 'auto'; accepted here: stop = 'never'.")
    if sweep.strategy == "auto" and sweep.metric != "accuracy":
        words = f"the model of strategy 'auto' is of accuracies, not of metric = {sweep.metric!r}"
        raise UsageError(f"{words}; accepted with it: strategy = 'optuna', or metric = 'accuracy'.")
    for key in ("sampler", "pruner"):
        name = getattr(sweep, key).name
        if (name == "auto") != (sweep.strategy == "auto"):
            raise UsageError(
                f"strategy {sweep.strategy!r} does not go with {key} {name!r}; accepted: strategy = 'auto' "
                "alone, or strategy = 'optuna' with a sampler and a pruner of Optuna."
            )


def _check_given(sweep: Sweep) -> None:
    """What a sweep of given points needs, and what no other can have."""
    if not sweep.given:
        if sweep.ensemble:
            raise UsageError("[[ensemble]] is of given points; accepted with sampler = 'given'.")
        if sweep.enqueue and sweep.sampler.name == "grid":
            raise UsageError("[[enqueue]] names points to try first; sampler 'grid' tries each one in its own order.")
        return
    if sweep.pruner.name != "none":
        raise UsageError(f"pruner {sweep.pruner.name!r} would end given points early; accepted: pruner = 'none'.")
    if sweep.confirm:
        raise UsageError("confirm repeats the best trials of a search; sampler 'given' searches nothing.")
    labels = [point.label for point in sweep.enqueue]
    if not labels or "" in labels or len(set(labels)) < len(labels):
        raise UsageError("sampler 'given' needs points in [[enqueue]], each with a label of its own.")


def _check_parameters(sweep: Sweep) -> None:
    """Names and values of `fixed`, `space`, `enqueue` and `preview`, against `PARAMETERS` and the models in play."""
    for name, value in sweep.fixed.items():
        check_parameter(name, value, where="[fixed]")
        if name in sweep.space:
            raise UsageError(f"{name} stands in [fixed] and in [space]; it belongs in one of them.")
    for name, (compared, accepted) in _SAME_FOR_ALL.items():
        if name in sweep.space or any(name in point.params() for point in sweep.enqueue):
            same = f"is to be the same for all trials, which are compared by {compared}"
            raise UsageError(f"{name} {same}; accepted: {accepted}.")
    for name, domain in sweep.space.items():
        for value in values_of(sweep, name):
            check_parameter(name, value, where="[space]")
        for part in parts_of(domain):
            if isinstance(part, Range) and part.step and (written := _as_choices(name, part.model_dump())):
                raise UsageError(f"[space]: {name}: step is for whole numbers; accepted: {written}.")
            if isinstance(part, Range) and PARAMETERS[name].kind is float and part.base2:
                fault = f"{name} is no whole number, so base2 and step do not fit"
                raise UsageError(f"[space]: {fault}; accepted: low, high, log.")
        if isinstance(domain, Cases):
            _check_cases(sweep, name, domain)
    for number, point in enumerate(sweep.enqueue, start=1):
        check_point(point.params(), sweep, where=f"[[enqueue]] {number}")
    for name, value in sweep.preview.params().items():
        check_parameter(name, value, where="[preview]")
    _check_used(sweep)
    check_layers(sweep)


def _check_cases(sweep: Sweep, name: str, domain: Cases) -> None:
    """A case for all that the others can be, and none that never comes; of plain numbers alone."""
    where = f"[space]: {name}"
    if decides_shape(name, *values_of(sweep, name)):
        raise UsageError(f"{where} decides which trials are trained together, so it has one range; not only_if.")
    usual = {**sweep.fixed, "model": values_of(sweep, "model")[0]}
    others: dict[str, list[Value]] = {}
    for case in domain.cases:
        for other, values in case.only_if.items():
            for value in values:
                check_parameter(other, value, where=f"{where}: only_if")
            if isinstance(sweep.space.get(other), (Range, Cases)):
                raise UsageError(f"{where}: only_if {other}: it is to have choices, or to stand in [fixed].")
            others[other] = values_of(sweep, other) if other in sweep.space else [known_beside(usual, [other])[other]]
    there = [sweep.fixed | dict(zip(others, values, strict=True)) for values in product(*others.values())]
    for settings in there:
        held = domain.at(settings)
        if not all(settings[other] in values for other, values in held.only_if.items()):
            words = listed(f"{other} = {in_toml(settings[other])}" for other in others)
            raise UsageError(f"{where} has no case for {words}; one without only_if, the last, is for all others.")
    for case in domain.cases:
        if not any(domain.at(settings) is case for settings in there):
            raise UsageError(f"{where}: its case {case.condition} never comes; take it away.")


def check_point(params: Mapping[str, Any], sweep: Sweep, *, where: str) -> dict[str, Value]:
    """The values of a point in their parameters' own types. UsageError for one that `fixed` and `space` do not have."""
    point = {name: check_parameter(name, value, where=where) for name, value in params.items()}
    for name, value in point.items():
        if name not in sweep.space and name not in sweep.fixed:
            raise UsageError(f"{where}: {name} is not in [space]; {nearest(name, sweep.space)}.")
        wrong, fixed, ranged = f"{where}: {name} = {in_toml(value)}", sweep.fixed.get(name), sweep.space.get(name)
        if fixed is not None and value != fixed:
            raise UsageError(f"{wrong} contradicts [fixed], where it is {in_toml(fixed)}.")
        if isinstance(ranged, Cases):
            known = sweep.fixed | point
            others = {other for case in ranged.cases for other in case.only_if} - known.keys()
            if open_ones := {other for other in others if other in sweep.space and applies(other, known)}:
                raise UsageError(f"{wrong} depends on {listed(sorted(open_ones))}; give that, too.")
            ranged = ranged.at(known)
        if ranged is not None and not contains(ranged, value):
            raise UsageError(f"{wrong} is outside of its [space]: {ranged}.")
    return point


def _check_used(sweep: Sweep) -> None:
    """Refuse a parameter that does nothing in any trial: an option that would do nothing."""
    models = values_of(sweep, "model")
    has = frozenset[str]().union(*(traits(str(model))[0] for model in models))
    for name in [*sweep.fixed, *sweep.space]:
        place = f"[{'fixed' if name in sweep.fixed else 'space'}]"
        if name not in has and not (name.startswith(OWN) and any(is_own(str(model)) for model in models)):
            raise UsageError(
                f"{place}: {name} does nothing for {listed(models)}; accepted: {listed(sorted(has & set(NAMES)))}."
            )
        if sweep.fixed.get(name) == PARAMETERS[name].default:
            continue
        for other, accepted in PARAMETERS[name].only_if.items():
            values = _reached(sweep, other)
            if values is not None and not set(values) & set(accepted):
                words = f"{name} does nothing for {other} = {listed(in_toml(value) for value in values)}"
                raise UsageError(f"{place}: {words}; it belongs to {listed(in_toml(value) for value in accepted)}.")
        for names, beside in IDLE:
            if base_of(name) in names and all(_is_always(sweep, name, other, off) for other, off in beside.items()):
                words = listed(f"{other} = {in_toml(value)}" for other, value in beside.items())
                raise UsageError(f"{place}: {name} does nothing where all trials have {words}; it belongs to others.")


def _is_always(sweep: Sweep, name: str, other: str, value: Value) -> bool:
    """Whether parameter `other` has this value in each trial; for a `name` of a single layer, in that layer."""
    given, base = {*sweep.fixed, *sweep.space}, base_of(name)
    layer = name.removeprefix(f"{base}_") if name != base else ""
    if other in BY_LAYER.values():
        return set(_reached(sweep, other) or ()) == {value}
    if layer and f"{other}_{layer}" in given:
        return set(values_of(sweep, f"{other}_{layer}")) == {value}
    found: list[Value] = []
    for each in values_of(sweep, other):
        entries = PARAMETERS[other].entries(each)
        found += [entry for k, entry in enumerate(entries, start=1) if layer in ("", str(k))] if entries else [each]
    of_layers = [each for each in given if base_of(each) == other != each and not layer]
    return {*found, *(each for one in of_layers for each in values_of(sweep, one))} == {value}


def _reached(sweep: Sweep, name: str) -> list[Value] | None:
    """The values that a parameter which decides about others takes; None where each model has its own.

    Batch norm is on where any layer has it; lists say how many layers there are.
    """
    given, domain = {*sweep.fixed, *sweep.space}, sweep.space.get(name)
    if name not in given and any(name in traits(str(model))[1] for model in values_of(sweep, "model")):
        return None
    values = values_of(sweep, name)
    if isinstance(domain, Range):
        values = list(range(int(domain.low), int(domain.high) + 1))
    if name == "batch_norm":
        values += [value for each in NORMS if each in given for value in values_of(sweep, each)]
    if name in BY_LAYER.values():
        for each in (each for each, counted in BY_LAYER.items() if counted == name):
            lengths = [min(len(PARAMETERS[each].entries(value)), MOST_LAYERS) for value in values_of(sweep, each)]
            if all(lengths):  # else some trials have as many layers as is said
                return list(dict.fromkeys(lengths))
            values += filter(None, lengths)
    return values


def _sentence(error: ValidationError, raw: Mapping[str, Any], *, where: str) -> str:
    """Pydantic's most telling complaint as one sentence: file, table, key, what is wrong, what would be accepted."""
    complaints = error.errors()
    # A misspelt key is also a missing one: the unknown key tells more.
    first = next((item for item in complaints if item["type"] == "extra_forbidden"), complaints[0])
    place, path = _locate(first["loc"], where=where)
    key, value = path[-1], first["input"]
    if first["type"] == "extra_forbidden":
        accepted = list(_accepted_keys(path, raw))
        close = get_close_matches(key, accepted, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        if key in _MEANT:
            hint = f"here it is {_MEANT[key]}; "
        return f"{place}: there is no key {key!r}; {hint}accepted: {listed(accepted)}."
    if first["type"] == "missing":
        return f"{place}: {key} is missing; accepted: low and high, or choices."
    if first["type"] == "literal_error":
        settings, field = (_SETTINGS[path[0]], "name") if path[0] in _SETTINGS else (Sweep, path[0])
        known = get_args(settings.model_fields[field].annotation)
        hint = {"bayes": "did you mean tpe? "}.get(str(value), "")
        words = f"{hint}known: {listed(sorted(known))}" if hint else nearest(str(value), known)
        return f"{where}: there is no {path[0]} {in_toml(value)}; {words}."
    if path[0] == "space" and "step" in (table := _table_of(raw, path)) and (written := _as_choices(path[1], table)):
        return f"{where}: [space]: {path[1]}: step is for whole numbers; accepted: {written}."
    if first["type"] == "value_error":
        return f"{place}: {key}: {first['ctx']['error']}."
    if isinstance(first["loc"][-1], int):
        key = f"a value of {key}"
    accepts = _ACCEPTED.get(first["type"], str(first["msg"])).format_map(first.get("ctx", {}))
    if first["type"] == "model_type" and key in _SETTINGS:
        accepts = f"the name of a {key} or a table with it"
    if first["type"] == "list_type" and key == "enqueue":
        accepts = "a list of points, each begun by [[enqueue]]"
    shown = "" if isinstance(value, dict) else f" = {in_toml(value)}"
    return f"{place}: {key}{shown} is not accepted; it takes {accepts}."


def _table_of(raw: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    table = raw["space"].get(path[1]) if len(path) > 1 and isinstance(raw["space"], dict) else None
    return table if isinstance(table, dict) else {}


def _as_choices(name: str, table: Mapping[str, Any]) -> str:
    """The steps of a number that is not whole as the choices that they are; empty where they cannot be told."""
    low, high, step = (table.get(key, math.nan) for key in ("low", "high", "step"))
    if name not in PARAMETERS or PARAMETERS[name].kind is not float:
        return ""
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (low, high, step)) or step <= 0:
        return "low, high, log, or choices"
    steps = math.floor((high - low) / step + 1e-9)
    if not 0 <= steps < MOST_STEPS:
        return "low, high, log, or choices"
    return f"choices = [{listed(float(f'{low + k * step:.10g}') for k in range(steps + 1))}]"


def _locate(loc: Sequence[int | str], *, where: str) -> tuple[str, list[str]]:
    """Where a complaint stands, in words; and its path of keys, without pydantic's own names and places in lists."""
    inner = ("Range", "Choices", "Cases", "RangeCase", "ChoicesCase", "cases")
    path = [str(part) for part in loc if isinstance(part, str) and part not in inner]
    if path[0] == "enqueue" and len(path) > 1:
        return f"{where}: [[enqueue]] {int(loc[1]) + 1}", path
    table = ".".join(path[:-1])
    return f"{where}: [{table}]" if table else where, path


def _accepted_keys(path: Sequence[str], raw: Mapping[str, Any]) -> Iterable[str]:
    if path[0] in _SETTINGS and len(path) > 1:
        return _SETTINGS[path[0]].model_fields
    if path[0] == "space" and len(path) > 2:
        table = raw["space"][path[1]]
        if not isinstance(table, dict) or "cases" in table:
            return ("only_if", *Range.model_fields, "choices")
        return Choices.model_fields if "choices" in table else (*Range.model_fields, "choices")
    return (*(name for name in Sweep.model_fields if name != "name"), "metric")
