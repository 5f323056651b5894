"""A sweep of another program as a sweep file: each line translated, or kept as a comment with the reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar_sweep.convert.foreign import Asked, Foreign
from cifar_sweep.convert.names import SQUARES, is_square, layered, parameter_of, switched_on, value_of
from cifar_sweep.errors import UsageError
from cifar_sweep.parameters import BY_LAYER, PARAMETERS
from cifar_sweep.sweep.parsing import MOST_STEPS, parse
from cifar_sweep.sweep.sweep import Choices, Sweep, suggested_order

_METHODS = {
    "grid": "grid", "gridsearch": "grid", "gridsampler": "grid", "random": "random", "randomsampler": "random",
    "bayes": "tpe", "tpe": "tpe", "tpesampler": "tpe", "bohb": "tpe", "anneal": "tpe", "evolution": "tpe",
    "qmcsampler": "qmc",
}  # fmt: skip
_METRICS = (("loss", "loss"), ("f1", "f1"), ("top5", "top5"), ("acc", "accuracy"), ("err", "accuracy"))
_WITHOUT = (
    "program",
    "command",
    "project",
    "entity",
    "n_jobs",
    "storage",
    "study_name",
)  # what a sweep file here needs not say


_OF_SCRIPTS = {
    "another sweep": "not taken: give it a file of its own",
    "taken, line": "the program may never run it",
    "not taken, line": "the program may never run it",
}


@dataclass
class Written:
    """The file's text, and the questions that are left: names of parameters whose ends may mean two things."""

    text: str = ""
    questions: list[str] = field(default_factory=list)


def as_toml(found: Foreign, *, source: str, log_ends: str | None = None) -> Written:
    """A sweep file for what was found in `source`. `log_ends` says how ends that are unclear are meant."""
    sweep = _Sweep(found)
    done = Written()
    for asked in found.asked:
        if asked.unclear and log_ends is None:
            done.questions.append(asked.name)
            sweep.question(asked)
        else:
            sweep.take(asked.with_ends(log_ends if asked.unclear and log_ends else "exponents"))
    sweep.settle()
    done.text = sweep.text(source)
    return done


FEW = 6  # a number of layers, not a width


class _Sweep:
    """What becomes of a foreign sweep: tables as they would be parsed, and comments."""

    def __init__(self, found: Foreign) -> None:
        self.found = found
        self.comments: list[str] = []
        self.top: dict[str, Any] = {}
        self.tables: dict[str, dict[str, Any]] = {"fixed": {}, "space": {}}
        self.asked: dict[str, Asked] = {}
        counted = [layered(parameter_of(asked.name, first=0) or "") for asked in found.asked if "0" in asked.name]
        self.from_zero = {found[0] for found in counted if found and found[1] == 1}  # whose layers begin with 0 there

    def name_of(self, asked: Asked) -> str | None:
        """Our name of a parameter; None where there is none."""
        from_zero = layered(parameter_of(asked.name, first=0) or "")
        return parameter_of(asked.name, first=0 if from_zero and from_zero[0] in self.from_zero else 1)

    def question(self, asked: Asked) -> None:
        """Keep a range whose ends may be values or exponents, with both meanings."""
        self.comments.append(f"{asked.name}: {asked.text}: its ends may be values or exponents; --log-ends says which:")
        for meant in ("values", "exponents"):
            taken = asked.with_ends(meant)
            low, high = (float(f"{end:.4g}") for end in (taken.low or 0.0, taken.high or 0.0))
            name = self.name_of(asked) or asked.name
            self.comments.append(f"  {meant}: {name} = {{ low = {low}, high = {high}, log = true }}")

    def leave(self, asked: Asked, reason: str) -> None:
        """Keep a parameter as a comment."""
        self.comments.append(f"{asked.name}: {asked.text}: left out: {' '.join(reason.split())}")

    def take(self, asked: Asked) -> None:
        """Put a parameter where it belongs; what it cannot be is said beside it."""
        name = self.name_of(asked)
        few = [value for value in asked.values or [asked.high] if isinstance(value, int) and value <= FEW]
        if name == "dense_units" and few and len(few) == len(asked.values or [0]):
            name = "dense_layers"  # nobody's layers are so narrow
        if asked.name.rpartition(".")[2].lower() in ("seed", "random_seed") and _is_seed(asked.values):
            self.top["seed"] = asked.values[0]
            return None
        if asked.reason or name is None:
            return self.leave(asked, asked.reason or "there is no such parameter")
        if name in self.asked:
            return self.leave(asked, f"{self.asked[name].name} is {name} already")
        try:
            domain = self._choices(name, asked) if asked.values else _range(name, asked)
        except ValueError as error:
            return self.leave(asked, f"{name}: {error}")
        self.asked[name] = asked
        self._note(name, asked, domain)
        choices = domain.get("choices", [])
        if len(choices) == 1:
            self.tables["fixed"][name] = choices[0]
        else:
            self.tables["space"][name] = domain
        return None

    def _note(self, name: str, asked: Asked, domain: Mapping[str, Any]) -> None:
        """Say what of a parameter is not kept, and what is taken for it."""
        if asked.note:
            self.comments.append(f"{asked.name}: not kept: {asked.note}")
        if asked.log and asked.step and (asked.step > 1 or PARAMETERS[name].kind is float):
            self.comments.append(f"{asked.name}: not kept: its steps of {asked.step:g}")
        for end, was in (("low", asked.low), ("high", asked.high)):
            if PARAMETERS[name].kind is float and end in domain and domain[end] != was:
                self.comments.append(f"{asked.name}: {was:g} is not accepted: {end} = {domain[end]:g} is taken")
        if name.startswith("dropout_") and (place := layered(name)):
            self.comments.append(f"{asked.name}: taken as of dense layer {place[1]}; conv_dropout is of blocks")

    def _choices(self, name: str, asked: Asked) -> dict[str, Any]:
        kept, faults, on = [], [], switched_on(asked.name)
        for value in asked.values:
            try:
                ours = value_of(name, value, on=on)
            except (ValueError, TypeError) as error:
                faults.append(str(error))
                continue
            kept += [ours] if ours not in kept else []
        if not kept:
            raise ValueError(faults[0])
        for fault in faults:
            self.comments.append(f"{asked.name}: a value is left out: {fault}")
        if name in SQUARES and any(is_square(part) for part in _parts(asked.values)):
            self.comments.append(f"{asked.name}: two alike are taken for the height and width in all layers")
        if name == "augmentation" and on in kept and on not in map(str, asked.values):
            self.comments.append(f"{asked.name}: what it does is the program's own; {on} is taken")
        return {"choices": kept}

    def settle(self) -> None:
        """Set what stands above the tables; leave out what no trial could have."""
        self._above()
        wanted, self.tables = self.tables, {"fixed": {}, "space": {}}
        self._complete(wanted)
        names = [*wanted["fixed"], *wanted["space"]]
        # What decides about others first: momentum is nothing beside the usual optimizer, all is nothing of a network.
        order = suggested_order(Sweep(name="s", space={name: Choices(choices=[0]) for name in names}))
        for name in sorted(order, key=lambda name: name != "model"):
            table = "fixed" if name in wanted["fixed"] else "space"
            self.tables[table][name] = wanted[table][name]
            if fault := self._fault_of_size(self._fault()):
                self.leave(self.asked.get(name, Asked(name, _toml(self.tables[table].pop(name)))), fault)
                self.tables[table].pop(name, None)
                self.tables["fixed"] |= {"model": "cnn"} if name == "model" else {}
        self._check_together()

    def _complete(self, wanted: dict[str, dict[str, Any]]) -> None:
        """Say what the program has for itself where a parameter makes no sense without."""
        names = {**wanted["fixed"], **wanted["space"]}
        if "model" not in names:
            self.tables["fixed"]["model"] = "cnn"
            self.comments.append(
                'the network is the program\'s own: model = "cnn" is taken, with the layers that it has here'
            )
        beside = {other: values for name in names for other, values in PARAMETERS[name].only_if.items()}
        for other, values in beside.items():
            if other not in names and PARAMETERS[other].default not in values and other not in BY_LAYER.values():
                wanted["fixed"][other] = values[0]
                self.comments.append(
                    f"{other} is not said: {_toml(values[0])} is taken, by parameters that belong to it"
                )
        numbered = [found for name in names if (found := layered(name)) and found[0] != "dropout"]
        for counted in sorted({BY_LAYER[name] for name, _ in numbered} - {*names}):
            wanted["fixed"][counted] = max(layer for name, layer in numbered if BY_LAYER[name] == counted)
            self.comments.append(f"{counted} is not said: as many are taken as have parameters of their own")

    def _fault_of_size(self, fault: str) -> str:
        """The fault, unless larger images mend it, of which the program says nothing."""
        if fault.startswith("images of") and "image_size" not in self.asked:
            for size in (64, 128, 224):
                self.tables["fixed"]["image_size"] = size
                if not self._fault():
                    self.comments.append(f"image_size is not said: {size} is taken, smaller images have nothing left")
                    return ""
            del self.tables["fixed"]["image_size"]
        return fault

    def _fault(self, **top: Any) -> str:
        """Why the sweep as it is cannot be; empty where it can."""
        try:
            parse({"name": "s", "sampler": "random", **top, **self.tables}, where="here")
        except UsageError as error:
            said = str(error).removeprefix("here: ")
            return said if len(said) < 200 else said.partition("; accepted:")[0]
        return ""

    def _above(self) -> None:
        """The sampler, the pruner, the number of trials, the metric, and what else stands there."""
        found, method = self.found, self.found.method.lower()
        self.top["sampler"] = _METHODS.get(method, "tpe")
        if method not in _METHODS:
            self.comments.append(f"method {found.method or 'is not said'}: sampler tpe is taken")
        if found.startup and self.top["sampler"] == "tpe":
            self.top["sampler"] = {"name": "tpe", "startup_trials": found.startup}
        if found.description:
            self.top["description"] = " ".join(found.description.split())
        if found.trials and found.trials > 0:
            self.top["trials"] = found.trials
        elif self.top["sampler"] != "grid":
            said = (
                "how many trials there are is not said" if found.trials is None else f"{found.trials} trials are none"
            )
            self.comments.append(f"{said}: trials = 50 if it is not given")
        if found.seed is not None and found.seed >= 0:
            self.top["seed"] = found.seed
        self._metric()
        self._pruner()
        for key, value in found.others.items():
            why = (
                "not needed here"
                if key in _WITHOUT or key.startswith("hydra.")
                else "there is nothing of this kind here"
            )
            why = next((said for start, said in _OF_SCRIPTS.items() if key.startswith(start)), why)
            self.comments.append(f"{key}: {' '.join(str(value).split())[:200]}: {why}")

    def _metric(self) -> None:
        name = self.found.metric.lower().replace("_", "").replace("-", "").replace(" ", "")
        metric = next((ours for part, ours in _METRICS if part in name), "")
        if self.found.metric and not metric:
            self.comments.append(f"metric {self.found.metric}: not known here; validation accuracy is taken")
        elif not name:
            self.comments.append("no metric is said: validation accuracy is taken")
        elif "train" in name or "test" in name:
            self.comments.append(f"metric {self.found.metric}: trials are chosen on the validation images alone")
        goal = self.found.goal.lower()
        if not self.found.metric and goal.startswith("min"):
            self.comments.append('it is made small there: metric = "loss" is taken, say another one if it is none')
            metric = "loss"
        elif goal and goal.startswith("min") != (metric == "loss" or "err" in name):
            self.comments.append(f"goal {self.found.goal}: {metric or 'accuracy'} goes the other way, which is taken")
        if metric not in ("", "accuracy"):
            self.top["metric"] = metric

    def _pruner(self) -> None:
        stopping = {key: _alone(value) for key, value in self.found.stopping.items()}
        kind = str(stopping.get("type", ""))
        self.top["pruner"] = "none"
        if not kind:
            return
        eta = stopping.get("eta", 3)
        numbers = [eta, *(stopping.get(key, 1) for key in ("min_iter", "max_iter", "s"))]
        if kind != "hyperband" or not all(isinstance(number, (int, float)) and number > 0 for number in numbers):
            self.comments.append(f"early_terminate {self.found.stopping}: not known here; no pruner is taken")
            return
        least = stopping.get("min_iter", stopping.get("max_iter", 1) / eta ** stopping.get("s", 0))
        steps = {"min_steps": max(1, round(least)), "reduction_factor": max(2, round(eta))}
        self.top["pruner"] = {"name": "hyperband"} | steps
        kept = ("type", "eta", "min_iter")
        if rest := {key: value for key, value in stopping.items() if key not in kept}:
            self.comments.append(f"early_terminate: of {rest} no more is kept than the steps of pruner hyperband")

    def _check_together(self) -> None:
        """A grid that cannot be one, and a pruner that a searched number of epochs does not take."""
        if self.top["sampler"] == "grid" and (fault := self._fault(sampler="grid")):
            self.comments.append(f"method grid: {fault} Sampler random is taken.")
            self.top["sampler"] = "random"
        if isinstance(self.top["pruner"], dict) and "epochs" in self.tables["space"]:
            self.comments.append("hyperband is unfair where epochs are searched: pruner median is taken")
            self.top["pruner"] = "median"

    def text(self, source: str) -> str:
        """The file."""
        lines = [f"From {source}, a sweep of {self.found.tool}, by cifar-sweep convert.", *self.comments]
        lines = [f"# {' '.join(line.split()) if not line.startswith('  ') else line}" for line in lines]
        lines += ["", *(f"{key} = {_toml(value)}" for key, value in self.top.items())]
        for name, table in self.tables.items():
            if table:
                lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _parts(values: Sequence[Any]) -> list[Any]:
    """Values, and those of lists among them."""
    return [*values, *(part for value in values if isinstance(value, list) for part in value)]


def _is_seed(values: Sequence[Any]) -> bool:
    return len(values) == 1 and isinstance(values[0], int) and values[0] >= 0


def _alone(value: Any) -> Any:
    """A value that stands in a list of its own."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _range(name: str, asked: Asked) -> dict[str, Any]:
    """A range as a table of [space]; ValueError where the parameter does not take it."""
    parameter, low, high, step = PARAMETERS[name], asked.low or 0.0, asked.high or 0.0, asked.step
    if not isinstance(step, (int, float, type(None))):
        raise ValueError(f"its step {step!r} is no number")
    if parameter.kind not in (int, float):
        raise ValueError(f"a range does not fit; it takes {parameter.accepted()}")
    if parameter.kind is float and step and not asked.log and (high - low) / step < MOST_STEPS:
        steps = int((high - low) / step + 1e-9)
        return {"choices": [parameter.check(float(f"{low + k * step:.10g}")) for k in range(steps + 1)]}
    if parameter.kind is int:
        low, high = round(low), round(high)
        step = max(1, round(step or 1))
        high -= (high - low) % step if not asked.log else 0
    low = max(low, parameter.low)  # a learning rate from 0, which none has
    high -= 0.001 if parameter.high_is_open and high == parameter.high else 0
    ends: dict[str, Any] = {"low": parameter.check(low), "high": parameter.check(high)}
    if asked.log:
        if (asked.low or 0.0) <= 0:
            raise ValueError(f"low = {asked.low:g} has no logarithm")
        return ends | {"log": True}
    return ends | ({"step": step} if parameter.kind is int and step and step > 1 else {})


def _toml(value: Any) -> str:
    """A value on one line of TOML; a table in braces."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
