"""A definition in the neutral form as a sweep of ours: `Translation(definition, folder).translated()`.

Raises UntranslatableError with the reason where a parameter, or a value, has no meaning here. What becomes another
thing than its author had is noted.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cifar_sweep.config import decides_shape
from cifar_sweep.convert.names import parameter_of, value_of
from cifar_sweep.parameters import BY_LAYER, MOST_LAYERS, NETWORK, OWN, PARAMETERS, VGG_MODELS, base_of, traits
from cifar_sweep.training.models.named import names_of
from cifar_sweep.training_parameters import OPTIMIZER_NAMES

MOST_POINTS = 5000
TRIALS = 20  # where the definition does not say how many
METHODS = {"grid": "grid", "random": "random", "hyperband": "random"}
KNOWN_METHODS = {*METHODS, "bayes", "tpe", "bohb", "gp", "", None}
STOPPING = {"hyperband": "hyperband", "asha": "asha", "median": "median", "bohb": "hyperband", "halving": "asha"}
GROWTH = {0.5: "half", 1: "same", 2: "double"}
SCHEDULES = {"cosine_restarts": "warm_restarts", "constant": "none"}
SETS = {
    True: "crop", False: "none", "light": "flip", "medium": "crop", "domain": "affine", "crop_and_flip": "crop",
    "crop_flip": "crop", "flip_crop": "crop", "colour": "color", "color_jitter": "color", "rotation": "affine",
}  # fmt: skip
# What stands for a change of images that is only switched on: the parameter, and its strength.
STRENGTHS: dict[str, tuple[str, float]] = {
    "rotation": ("rotation", 15.0), "zoom": ("zoom", 0.1), "shift": ("shift", 0.1), "flip": ("flip", 0.5),
    "horizontal_flip": ("flip", 0.5), "vertical_flip": ("vertical_flip", 0.5), "translate": ("shift", 0.1),
    "brightness": ("brightness", 0.2), "contrast": ("contrast", 0.2), "saturation": ("saturation", 0.2),
    "color_jitter": ("color", 0.2), "colour": ("color", 0.2), "color": ("color", 0.2),
    "cutout": ("cutout", 8), "random_erasing": ("cutout", 8), "mixup": ("mixup", 0.2), "cutmix": ("cutmix", 1.0),
}  # fmt: skip
# Switches of a whole set, or of a policy.
POLICIES = {
    "autoaugment": "autoaugment", "auto_augment": "autoaugment", "randaugment": "randaugment",
    "rand_augment": "randaugment", "trivialaugment": "trivialaugment", "trivial_augment": "trivialaugment",
    "random_crop": "crop", "crop": "crop", "color_jitter": "color", "colour": "color", "random_affine": "affine",
    "affine": "affine",
}  # fmt: skip
NAMES = {
    "dense_dropout": "dropout", "blocks": "conv_layers", "schedule_t_0": "restart_epochs", "ema": "ema_decay",
    "schedule_t_mult": "restart_factor", "schedule_t_max": "cosine_epochs", "schedule_factor": "plateau_factor",
    "schedule_min_learning_rate": "lowest_rate", "schedule_patience": "plateau_patience",
    "schedule_power": "polynomial_power", "schedule_max_lr_factor": "onecycle_start", "norm_place": "norm_position",
    "schedule_warmup_fraction": "onecycle_peak", "network": "model", "mixup_probability": "mix_probability",
    "cutmix_probability": "mix_probability", "training_images": "train_images",
    "bias_learning_rate_factor": "bias_rate", "schedule_end_learning_rate": "lowest_rate",
    "seed": "repeat",
    "asgd_alpha": "asgd_power", "asgd_lambda": "asgd_decay", "horizontal_flip": "flip", "hidden_units": "dense_units",
    "norm_momentum": "batch_norm_momentum", "bn_momentum": "batch_norm_momentum", "random_erasing": "cutout",
    "randaugment_n": "randaugment_operations", "randaugment_m": "randaugment_magnitude", "translate": "shift",
    "clip_norm": "gradient_clip", "clipnorm": "gradient_clip", "conv_activation": "activation",
    "conv_batch_norm": "batch_norm", "learning_rate_decay": "gamma", "filter_organisation": "filter_growth",
    "jitter": "color", "color_jitter": "color", "frozen_layers": "freeze", "frozen_stages": "freeze",
    "early_stopping_patience": "patience", "dense_norm": "dense_batch_norm", "schedule_milestones": "milestones",
}  # fmt: skip
SETTINGS = {
    "step": {"step_size": "step_size", "gamma": "gamma"}, "exponential": {"gamma": "gamma"},
    "multistep": {"milestones": "milestones", "gamma": "gamma"},
    "cosine": {"t_max": "cosine_epochs", "min_learning_rate": "lowest_rate"},
    "plateau": {
        "factor": "plateau_factor", "patience": "plateau_patience", "min_learning_rate": "lowest_rate",
    },
    "cyclic": {
        "base_learning_rate": "lowest_rate", "max_learning_rate": "learning_rate", "step_up": "cycle_up",
        "step_down": "cycle_down", "mode": "cycle_mode",
    },
    "cosine_restarts": {
        "t_0": "restart_epochs", "t_mult": "restart_factor", "min_learning_rate": "lowest_rate",
    },
    "onecycle": {"warmup_fraction": "onecycle_peak", "max_learning_rate": "learning_rate"},
    "polynomial": {"power": "polynomial_power", "end_learning_rate": "lowest_rate"},
}  # fmt: skip
# Where what has one place here, or the usual one, stands there.
PLACES = {
    ("activation", "conv"), ("activation", "dense"), ("batch_norm", "conv"), ("learning_rate", "backbone"),
    ("learning_rate", "head"), ("dropout", "dense"),
}  # fmt: skip
BY_PLACE = {
    ("dropout", "input"): "input_dropout", ("dropout", "conv"): "conv_dropout",
    ("activation", "dense"): "dense_activation", ("batch_norm", "dense"): "dense_batch_norm",
    ("learning_rate", "head"): "head_rate",
}  # fmt: skip
# What describes a network, whatever it is called.
OF_NETWORKS = re.compile(
    r"filter|kernel|stride|padding|pool|conv|dense|unit|layer|block|residual|skip|growth|width|depth|channel|head|patch"
    r"|dilat|group|expan|cardinal|bottleneck|squeeze|reduction|hidden|stem|branch|norm|organi|architecture|cell|inception"
    r"|capsule|attention|embed|maxout|lstm|gru|^bias$|conv_bias|use_bias"
)
# Numbers that are no such description although they may sound like one.
NOT_OF_NETWORKS = re.compile(r"decay|l1|l2|clip|rate|regulari|freeze|momentum|sampl|bits?\b|loss|group_lasso")
LIKE = {"vgg": "vgg16", "mobilenet": "mobilenet_v2"}
OWN_FUNCTION = '''

def {name}(shape, **net):
    """Stands for a network that neither this project, torchvision nor timm has, as its user would bring it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, shape.classes)
    )
'''
_OF_OPTIMIZERS = re.compile(rf"({'|'.join(OPTIMIZER_NAMES)})_(.+)")


IDLE = re.compile(r"no effect|without effect|never used|not used")


class UntranslatableError(Exception):
    """A definition has a parameter or a value that has no meaning here."""


class Translation:
    """A definition as a sweep of ours: its plain data, functions of its user's own, and notes."""

    def __init__(self, definition: Mapping[str, Any], folder: Path) -> None:
        plain = {
            "method": None,
            "stopping": None,
            "metric": None,
            "trials": None,
            "beyond": [],
            "data": {},
            "fixed": {},
        }
        self.definition: dict[str, Any] = {**plain, **definition}
        for key in ("beyond", "data", "fixed"):
            self.definition[key] = self.definition[key] or plain[key]
        self.folder = folder
        self.parameters: list[dict[str, Any]] = list(self.definition.get("parameters") or [])
        self.fixed: dict[str, Any] = {}
        # Of each parameter its domains, each with what must hold.
        self.cases: dict[str, list[tuple[dict[str, list[Any]], dict[str, Any]]]] = {}
        self.notes: list[str] = []
        self.words: dict[str, str] = {}  # what what is fixed is called
        self.nesterov: list[Any] = []
        self.layers = self._layers()
        self.own = False
        self.own = self._needs_an_own_network()

    def _layers(self) -> dict[str, int]:
        """The most layers that a trial can have, of each kind."""
        known = {"conv_layers": 3, "dense_layers": 1}
        fixed = self.definition["fixed"]
        for name, counted in (("conv_layers", "conv_layers"), ("blocks", "conv_layers"), ("dense_layers",) * 2):
            known[counted] = int(fixed.get(name, known[counted]))
            for each in self._named(name):
                known[counted] = int(max(each["values"]) if each["kind"] == "choices" else each["high"])
        for each in self.parameters:
            counted = BY_LAYER.get(NAMES.get(each["name"], each["name"]), "")
            if counted and each.get("layer"):
                known[counted] = max(known[counted], int(each["layer"]))
        return known

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.parameters if each["name"] == name]

    def _name(self, own: str) -> str | None:
        """Our name of a parameter; None where there is none."""
        candidates = [NAMES.get(own), own, own.removeprefix("schedule_")]
        if of_optimizer := _OF_OPTIMIZERS.fullmatch(own):
            candidates += [NAMES.get(of_optimizer[2]), of_optimizer[2]]
        known = [name for name in candidates if name and name in PARAMETERS]
        return known[0] if known else parameter_of(own)

    def _needs_an_own_network(self) -> bool:
        """Whether something describes a network that `model = "cnn"` cannot be."""
        listed = [value for each in self._named("network") for value in each["values"]]
        if listed:
            return False
        network = self.definition["fixed"].get("network")
        if isinstance(network, str) and network not in ("own_cnn", "cnn", "lenet", "vgg6", "mlp"):
            return ":" in (model := self._model(network, note=False)) and not model.startswith(("torchvision", "timm"))
        asked = [*self.definition["fixed"], *(each["name"] for each in self.parameters)]
        odd = [name for name in asked if self._is_of_network(name) and self._is_unknown(name)]
        odd += [
            f"{each['name']}: {value}"
            for each in self.parameters
            if self._name(each["name"]) in ("pooling", "padding", "filter_growth", "global_pooling")
            for value in each.get("values", [])
            if not self._takes(each["name"], value)
        ]
        if odd:
            self.notes.append(f"{', '.join(odd)}: of a network that is a function of the user's own")
        return bool(odd)

    def _is_of_network(self, name: str) -> bool:
        return bool(OF_NETWORKS.search(name)) and not NOT_OF_NETWORKS.search(name)

    def _is_unknown(self, name: str) -> bool:
        plain = ("schedule_settings", "networks_one_study_each", "images_per_class")
        return name not in plain and not name.endswith("_on") and self._name(name) is None

    def _takes(self, own: str, value: Any) -> bool:
        with suppress(UntranslatableError):
            self._value(self._name(own) or "", value)
            return True
        return False

    def translated(self) -> dict[str, Any]:
        """The sweep as plain data; UntranslatableError with a reason where it has none."""
        definition = self.definition
        if definition["beyond"]:
            raise UntranslatableError(f"{', '.join(definition['beyond'])}: nothing here has this meaning")
        for name, value in definition["fixed"].items():
            self._fix(name, value)
        for each in self.parameters:
            before = len(self.notes), str(self.cases)
            self._search(each)
            if before == (len(self.notes), str(self.cases)) and not (
                each["name"] in ("nesterov", "ema") or each["name"] in self._switches() or each["name"].endswith("_on")
            ):
                raise UntranslatableError(f"{each['name']}: it is lost")
        space = self._space()
        self._network(space)
        self._momentum(space)
        self._schedules(space)
        if any(name.startswith("randaugment_") for name in space) and "augmentation" not in {**space, **self.fixed}:
            self.fixed["augmentation"] = "randaugment"
        if self.own:
            self._give_to_own(space)
        self._leave_out_idle(space)
        return self._settings(space) | {"fixed": self.fixed, "space": space}

    def _settings(self, space: Mapping[str, Any]) -> dict[str, Any]:
        """All but the parameters."""
        definition = self.definition
        method = METHODS.get(definition["method"], "tpe")
        if definition["method"] not in KNOWN_METHODS:
            self.notes.append(f"{definition['method']}: TPE instead")
        stopping = STOPPING.get(definition["stopping"] or definition["method"] or "", "none")
        if stopping in ("hyperband", "asha") and "epochs" in space:
            self.notes.append(f"{stopping} compares trials by epochs, which are searched: median instead")
            stopping = "median"
        points = math.prod(max(len(self._values_of(space, name)) - 1, 1) for name in space)
        if method == "grid" and points > MOST_POINTS:
            self.notes.append("a grid of more points than anybody would train: some of them at random")
            method = "random"
        is_grid = method == "grid"
        trials = {} if is_grid and not definition["trials"] else {"trials": int(definition["trials"] or TRIALS)}
        sweep: dict[str, Any] = {"name": definition["id"], **trials, "sampler": method, "pruner": stopping}
        metric = definition["metric"]
        if metric in ("loss", "f1", "top5"):
            sweep["metric"] = metric
        elif metric not in (None, "accuracy", "error"):
            self.notes.append(f"metric {metric}: accuracy instead")
        if (runs := definition["fixed"].get("runs_per_trial", 1)) > 1:
            sweep["confirm"] = [5, int(runs)]
            self.notes.append(f"the best five are repeated under {runs} seeds, not every trial")
        if "seed" in definition["fixed"] or "sampler_seed" in definition["fixed"]:
            sweep["seed"] = int(definition["fixed"].get("sampler_seed", definition["fixed"].get("seed", 0)))
        if first := definition["fixed"].get("random_trials_first"):
            sweep["sampler"] = {"name": "tpe", "startup_trials": int(first)}
        return sweep

    # What is fixed

    def _fix(self, name: str, value: Any) -> None:
        match name:
            case (
                "gradient_accumulation"
                | "seed"
                | "sampler_seed"
                | "random_trials_first"
                | "runs_per_trial"
                | "schedule_settings"
            ):
                return  # of the sweep, or read with the schedule
            case "network" | "networks_one_study_each":
                names = value if isinstance(value, list) else [value]
                self._search({"name": "network", "kind": "choices", "values": names})
            case "augmentation":
                for part in value if isinstance(value, list) else [value]:
                    self._augment(part, beside=bool(self._named("augmentation")))
            case "optimizer" if value in ("momentum", "sgd_momentum"):
                self.fixed |= {"optimizer": "sgd"} | ({} if self._named("momentum") else {"momentum": 0.9})
            case "images_per_class":
                self.fixed["train_images"] = int(value) * (self.definition["data"].get("classes") or 10)
            case "schedule" if value == "piecewise_linear":
                settings = self.definition["fixed"].get("schedule_settings", {}).get(value, {})
                # Up to a peak and down to nothing, in straight lines: a warm-up, then a polynomial of power 1.
                self.fixed |= {"schedule": "polynomial", "warmup_epochs": int(settings.get("peak_epoch", 5))}
            case "ema" if "ema_decay" in self.definition["fixed"] or self._named("ema_decay"):
                return
            case _ if name.endswith("_on"):
                self._switch(name.removesuffix("_on"), [bool(value)])
            case _ if self.own and self._name(name) is None and self._is_of_network(name):
                self.fixed[f"{OWN}{name}"] = _plain(value)
            case _:
                ours = self._name(name)
                if ours is None:
                    raise UntranslatableError(f"{name}: there is no such parameter")
                asked = self._value(ours, value, own=name)
                if self.fixed.setdefault(ours, asked) != asked:
                    raise UntranslatableError(f"{ours} is set twice: {self.fixed[ours]}, and {name} = {value}")
                self.words[ours] = name

    def _augment(self, part: Any, *, beside: bool) -> None:
        """One of several fixed changes of images; `beside` those that are searched, which have the names of sets."""
        if part == "crop" and beside:
            self.fixed["shift"] = 0.125
        elif part in ("none", False, None):
            self.fixed.setdefault("augmentation", "none")
        elif part in STRENGTHS:
            name, strength = STRENGTHS[part]
            self.fixed[name] = strength
        elif isinstance(part, (str, bool)) and self._takes("augmentation", part):
            self.fixed["augmentation"] = self._value("augmentation", part)
        else:
            self.notes.append(f"augmentation {part} is left out")

    # What is searched

    def _search(self, each: Mapping[str, Any]) -> None:
        own = each["name"]
        place = each.get("place", each.get("part"))
        name = BY_PLACE.get((own, place)) or self._name(own)
        if own == "trainable_layers":  # counted from the end, with the last layer
            self.notes.append("layers are stages of the network")
            name, each = "freeze", _from_the_end(each)
        if own == "class_weights" and "class_index" in each:
            name = f"class_weights_{each['class_index'] + 1}"
        if own == "ema" and ("ema_decay" in self.definition["fixed"] or self._named("ema_decay")):
            if "ema_decay" in self.definition["fixed"]:
                self.fixed.pop("ema_decay", None)
                self._put_switch("ema_decay", self.definition["fixed"]["ema_decay"], each["values"])
            return
        if name is None and own in self._switches():
            return  # a strength of 0 is off
        if own.endswith("_on"):
            self._switch(own.removesuffix("_on"), each["values"])
        elif own in POLICIES and each["kind"] == "choices" and set(each["values"]) <= {True, False}:
            self._set(POLICIES[own], each["values"])
        elif own in STRENGTHS and each["kind"] == "choices" and set(map(str, each["values"])) <= {"True", "False"}:
            self._put_switch(*STRENGTHS[own], each["values"])
        elif as_lists := each.get("as_lists"):  # what the words stand for
            self._search({"name": "filters", "kind": "choices", "values": list(as_lists.values())})
        elif own == "asgd_t0":
            self.notes.append("asgd_t0 changes no result: what it averages is validated by nobody")
        elif own == "nesterov":  # a switch of sgd
            self.nesterov = each["values"]
        elif place and (own, place) not in PLACES and (own, place) not in BY_PLACE and name != f"{place}_{own}":
            raise UntranslatableError(f"{own} of {place} parts alone")
        elif self.own and (name is None or OF_NETWORKS.search(own)) and self._is_of_network(own):
            self._search_own(own, each)
        elif name is None:
            raise UntranslatableError(f"{own}: there is no such parameter")
        else:
            self._put(name, each)
        if own == "activation" and place == "conv" and not self.own:
            self.fixed.setdefault("dense_activation", PARAMETERS["activation"].default)

    def _put(self, name: str, each: Mapping[str, Any]) -> None:
        domain, conditions = self._domain(name, each), self._conditions(name, each)
        names = [name]
        if "layer" in each:
            names = [f"{name}_{each['layer']}"]
        elif each.get("by_layer"):
            if name not in BY_LAYER:
                raise UntranslatableError(f"{each['name']} by layer")
            names = [f"{name}_{layer}" for layer in range(1, self.layers[BY_LAYER[name]] + 1)]
        for one in names:
            if one not in PARAMETERS:
                raise UntranslatableError(f"{one}: there is no such parameter")
            self.cases.setdefault(one, []).append((conditions, domain))
            if self.fixed.pop(one, None) is not None and self.words.get(one, each["name"]) != each["name"]:
                raise UntranslatableError(f"{one} is set by {self.words[one]}, and searched as {each['name']}")

    def _search_own(self, own: str, each: Mapping[str, Any]) -> None:
        """A parameter of the user's own network."""
        values = each.get("values")
        domain = {"choices": [_plain(value) for value in values]} if values else self._numbers(None, each)
        count = max(self.layers["dense_layers" if "dense" in own else "conv_layers"], 1) if each.get("by_layer") else 0
        layers = [each["layer"]] if "layer" in each else list(range(1, count + 1))
        for one in [f"{own}_{layer}" for layer in layers] or [own]:
            self.cases.setdefault(f"{OWN}{one}", []).append(({}, domain))

    def _switches(self) -> set[str]:
        """What is on or off, and says whether others are searched."""
        conditions = {name for each in self.parameters for name in each.get("only_if") or {}}
        both = [each for each in self.parameters if each["kind"] == "choices" and set(each["values"]) <= {True, False}]
        return {each["name"] for each in both if each["name"] in conditions}

    def _set(self, name: str, values: Sequence[Any]) -> None:
        """A set of changes that is switched on and off; of several such switches one is on."""
        begun = self.cases.setdefault("augmentation", [({}, {"choices": [self.fixed.pop("augmentation", "none")]})])
        choices = begun[0][1]["choices"]
        if len(choices) > 1:
            self.notes.append(f"{name} is on only where {choices[-1]} is off")
        choices += [name] if True in values and name not in choices else []

    def _switch(self, own: str, values: Sequence[Any]) -> None:
        """What is switched on and off: where its strength is searched, a strength of 0 is off."""
        if self._named(own):
            return  # its own values have one that is off
        fixed = self.definition["fixed"].get(own)
        if isinstance(fixed, (int, float)) and (name := self._name(own)):
            self.fixed.pop(name, None)
            self._put_switch(name, self._value(name, fixed), values)
            return
        if own in POLICIES:
            self._set(POLICIES[own], values)
            return
        name, strength = STRENGTHS.get(own, ("", 0.0))
        if not name:
            raise UntranslatableError(f"{own}: that it is on says nothing of how much of it")
        self._put_switch(name, strength, values)

    def _is_switched(self, each: Mapping[str, Any]) -> bool:
        """Whether it is off in some trials, by a switch."""
        own, conditions = each["name"], each.get("only_if") or {}
        switches = [
            *self._named(f"{own}_on"),
            *(one for name in conditions if name not in POLICIES for one in self._named(name)),
        ]
        return any(
            set(each["values"]) == {True, False} and (each["name"].endswith("_on") or each["name"] in conditions)
            for each in switches
            if each["kind"] == "choices"
        )

    def _put_switch(self, name: str, strength: float, values: Sequence[Any]) -> None:
        choices = [strength if value else 0 for value in values]
        if len(choices) == 1:
            self.fixed[name] = choices[0]
        else:
            self.cases[name] = [({}, {"choices": choices})]

    def _conditions(self, name: str, each: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What must hold for this domain, in our words; switches, and what is so here anyway, are left out."""
        found: dict[str, list[Any]] = {}
        conditions = dict(each.get("only_if") or {})
        if of_optimizer := _OF_OPTIMIZERS.fullmatch(each["name"]):
            conditions.setdefault("optimizer", [of_optimizer[1]])
        for own, values in conditions.items():
            other = self._name(own)
            if other is None or own.endswith("_on") or own in POLICIES or own in STRENGTHS or own == "ema":
                continue
            asked = [self._value(other, value) for value in (values if isinstance(values, list) else [values])]
            one = f"{name}_{each['layer']}" if "layer" in each else name
            there = {_hashable(value) for case in self._listed(other) for value in case}
            usual = set(PARAMETERS[one].only_if.get(other, there)) & there if there else set(map(_hashable, asked))
            if other in BY_LAYER.values() and "layer" in each:
                usual = {count for count in there if count >= each["layer"]}
            if usual <= set(map(_hashable, asked)):
                continue
            if any(self._name(beside["name"]) == other for beside in self.parameters) or other in self.fixed:
                found[other] = asked
        return found

    def _listed(self, name: str) -> list[list[Any]]:
        """The values of a parameter of this name, where they can be listed."""
        found = []
        for each in self.parameters:
            if self._name(each["name"]) != name:
                continue
            if each["kind"] == "choices":
                found.append([self._value(name, value) for value in each["values"]])
            elif each["kind"] == "int" and each["high"] - each["low"] < MOST_LAYERS:
                found.append(list(range(each["low"], each["high"] + 1)))
        return found

    def _space(self) -> dict[str, Any]:
        """The searched parameters; those with several domains as cases, the last of which is for all others."""
        space: dict[str, Any] = {}
        for name, cases in self.cases.items():
            conditioned = [(conditions, domain) for conditions, domain in cases if conditions]
            general = [domain for conditions, domain in cases if not conditions]
            if len(general) > 1:
                raise UntranslatableError(f"{name} is asked for twice, beside the same")
            if conditioned and decides_shape(name):
                if len(cases) > 1:
                    raise UntranslatableError(f"{name} has a range of its own beside other values")
                self.notes.append(f"{name} is searched in all trials")
                conditioned, general = [], [cases[0][1]]
            if not conditioned:
                space[name] = general[-1]
                continue
            rest = general[-1] if general else {"choices": [PARAMETERS[name].default]}
            if not general and self._cover([conditions for conditions, _ in conditioned]):
                rest = conditioned.pop()[1]
            space[name] = [*({**domain, "only_if": conditions} for conditions, domain in conditioned), rest]
        return space

    def _cover(self, conditions: Sequence[Mapping[str, Sequence[Any]]]) -> bool:
        """Whether one of these conditions on one parameter always holds."""
        names = {name for each in conditions for name in each}
        if len(names) != 1 or len(conditions) < 2:
            return False
        [name] = names
        there = {_hashable(value) for values in self._listed(name) for value in values}
        return there <= {_hashable(value) for each in conditions for value in each[name]}

    # Values

    def _domain(self, name: str, each: Mapping[str, Any]) -> dict[str, Any]:
        if each["kind"] == "choices":
            values = [self._value(name, value, own=each["name"]) for value in each["values"]]
            if self._is_switched(each):
                values.append("none" if PARAMETERS[name].kind is str else PARAMETERS[name].kind(0))
            values = list(dict.fromkeys(map(_hashable, values)))
            return {"choices": [list(value) if isinstance(value, tuple) else value for value in values]}
        return self._numbers(name, each)

    def _numbers(self, name: str | None, each: Mapping[str, Any]) -> dict[str, Any]:
        """A range."""
        low, high, step = each["low"], each["high"], each.get("step")
        parameter = PARAMETERS[name] if name else None
        is_whole = each["kind"] == "int" or (parameter is not None and parameter.kind is int)
        if parameter is not None:
            if parameter.high_is_open and high >= (parameter.high or 0):
                high = 0.999 * (parameter.high or 0)
            if low < parameter.low:
                self.notes.append(f"{name} begins at {parameter.low:g}, not {low:g}")
                low = parameter.low
            if parameter.high is not None and high > parameter.high:
                self.notes.append(f"{name} ends at {parameter.high:g}, not {high:g}")
                high = parameter.high
            if parameter.kind is str:
                if is_whole:
                    return {"choices": [self._value(str(name), value) for value in range(int(low), int(high) + 1)]}
                steps = [round(low + k * (high - low) / 4, 3) for k in range(5)]
                self.notes.append(f"{name} in five steps")
                return {"choices": [self._value(str(name), value) for value in steps]}
        if self._is_switched(each) and not each.get("log"):
            low = 0  # a rate of 0 is off
        elif self._is_switched(each):
            self.notes.append(f"{each['name']} is never off")
        if each["name"] == "rotation" and high <= 1:  # shares of a turn
            low, high, step = 360 * low, min(360 * high, 180), 360 * step if step else None
        if step and not is_whole:
            return {
                "choices": [round(low + k * step, 10) for k in range(math.floor(round((high - low) / step, 9)) + 1)]
            }
        found: dict[str, Any] = {"low": int(low), "high": int(high)} if is_whole else {"low": low, "high": high}
        if step and not each.get("log") and is_whole:
            found |= {"step": int(step), "high": int(low + (high - low) // step * step)}
        return found | ({"log": True} if each.get("log") and low > 0 else {})

    def _value(self, name: str, value: Any, *, own: str = "") -> Any:
        """A value in our words; UntranslatableError where there is none."""
        match name:
            case "filter_growth" if isinstance(value, (int, float)):
                return GROWTH.get(value, f"{value:g}")
            case "augmentation" if isinstance(value, list):
                raise UntranslatableError(f"augmentation = {value}")
            case "augmentation":
                value = SETS.get(value, value)
            case "schedule":
                value = SCHEDULES.get(value, value)
            case "norm_position" if value in ("before", "after"):
                value = f"{value}_activation"
            case "ema_decay" if isinstance(value, bool):
                return 0.999 if value else 0.0
            case "class_weights" if isinstance(value, bool):
                value = "balanced" if value else "none"
            case "global_pooling" if value in ("avg", "average", "none", None):
                value = value in ("avg", "average")
            case "padding" if isinstance(value, int):
                value = {0: "valid"}.get(value, str(value))
            case "label_smoothing" if isinstance(value, bool):
                return 0.1 if value else 0.0
            case "optimizer" if value in ("momentum", "sgd_momentum"):
                return "sgd"
            case "loss" if isinstance(value, str) and "smooth" in value:
                value = "focal" if "focal" in value else "cross_entropy"
            case "rotation" if isinstance(value, float) and 0 < value <= 1:
                return 360 * value  # shares of a turn
            case "repeat":
                return value_of(name, value)  # not as it stands: 0 is a seed of each trial's own
            case "model":
                return self._model(value)
            case "precision" if value in ("mixed", "amp", "fp16", "float16", 16):
                return "auto"
            case "freeze" if isinstance(value, (str, bool)) or value is None:
                return self._frozen(value)
            case "dropout" | "conv_dropout" | "input_dropout" if value == 1:
                self.notes.append(f"{own or name} = 1 lets nothing through: 0.99 instead")
                return 0.99
        if isinstance(value, list):
            return value
        try:
            return PARAMETERS[name].check(value)
        except ValueError:
            pass
        try:
            return value_of(name, value)
        except ValueError as error:
            raise UntranslatableError(f"{own or name}: {error}") from None

    def _frozen(self, words: Any) -> int:
        """How many stages from the first are frozen."""
        if not words or words == "none":
            return 0
        if words is True or words in ("all", "all_but_head", "all_but_last", "backbone"):
            return 100
        if number := re.search(r"\d+", words):
            return -int(number[0]) if "last" in words else int(number[0])
        if words == "partial":
            self.notes.append("partial is two stages")
            return 2
        raise UntranslatableError(f"freeze = {words}")

    # Networks

    def _model(self, name: str, *, note: bool = True) -> str:
        if name in VGG_MODELS:
            return name
        if name in ("vgg6", "own_cnn", "cnn", "mlp", "lenet") and not self.own:
            return "cnn"
        for library, named in (("torchvision", name), ("torchvision", LIKE.get(name, "")), ("timm", name)):
            if named in _library(library):
                return f"{library}:{named}"
        function = re.sub(r"\W", "_", name)
        function = f"net_{function}" if function[:1].isdigit() else function
        file = self.folder / f"own_{re.sub(r'[^0-9a-z]', '', str(self.definition['id']).lower())}.py"
        text = file.read_text() if file.is_file() else "from torch import nn\n"
        if f"def {function}(" not in text:
            file.write_text(text + OWN_FUNCTION.format(name=function))
        if note:
            self.notes.append(f"{name} is a function of the user's own")
        return f"{file.stem}:{function}"

    def _network(self, space: dict[str, Any]) -> None:
        """What the network is, where only its parts are said."""
        fixed = self.definition["fixed"]
        models = space.get("model", {}).get("choices", [])
        names = [*fixed.get("networks_one_study_each", []), fixed.get("network")]
        names += [value for each in self._named("network") for value in each["values"]]
        if len(models) == 1:
            self.fixed["model"] = models[0]
            del space["model"]
        elif not models:
            self.fixed["model"] = "torchvision:resnet18" if {**self.fixed, **space}.get("pretrained") else "cnn"
            if self.own:
                self.fixed["model"] = self._model("network", note=False)
        if self.own:
            return
        listed = [str(model) for model in models or [self.fixed.get("model")]]
        if not self.definition["data"].get("size") and any("inception_v3" in model for model in listed):
            self.fixed["image_size"] = 96  # of smaller ones it leaves nothing
        if "cnn" not in listed and any(model.startswith(("torchvision:", "timm:")) for model in listed):
            for table in (space, self.fixed):  # hidden layers of such a network are those of its head
                for name in ("dense_layers", "dense_units"):
                    if name in table:
                        table[name.replace("dense", "head")] = table.pop(name)
            if "head_units" in {**space, **self.fixed} and "head_layers" not in {**space, **self.fixed}:
                self.fixed["head_layers"] = 1
            return
        if "vgg6" in names:
            self.fixed |= {"convs_per_block": 2, "filters": [64, 128], "dense_units": 256}
        if "lenet" in names:
            self.fixed.setdefault("kernel_size", 5)
        if "mlp" in names:
            self.notes.append("the perceptron is a cnn without convolutions")
            self.fixed.pop("conv_layers", None)
            counts = [count for each in self._listed("conv_layers") for count in each] or [3]
            space["conv_layers"] = {"choices": [0, *counts] if "own_cnn" in names else [0]}
        self._count_layers(space)
        if sizes := space.pop("image_size", None):
            self.fixed["image_size"] = max(sizes["choices"]) if "choices" in sizes else sizes["high"]
            space["input_size"] = sizes

    def _count_layers(self, space: dict[str, Any]) -> None:
        for counted, most in self.layers.items():
            lists = [value for name, c in BY_LAYER.items() if c == counted for value in self._values_of(space, name)]
            lists = [value for value in lists if isinstance(value, list)]
            searched = space.get(counted)
            if lists:
                self.fixed.pop(counted, None)
                if searched and {len(each) for each in lists} != {most}:
                    raise UntranslatableError(f"{counted} beside lists of so many layers")
                if searched:
                    self._cut_lists(space, counted)
            told = {"pooling", "pool_size"} & {*self.fixed, *(each["name"] for each in self.parameters)}
            if counted == "conv_layers" and not told - {"pool_size"} and not self._named("pool_size"):
                self._spare_pooling(max([most, *map(len, lists)]))
            if lists:
                continue
            if counted not in space and most != PARAMETERS[counted].default:
                self.fixed[counted] = most
            if most > MOST_LAYERS:
                raise UntranslatableError(f"{most} {counted}; at most {MOST_LAYERS}")

    def _spare_pooling(self, layers: int) -> None:
        """Where a pooling after each of so many layers would leave nothing: some have none."""
        size = self.definition["data"].get("size") or 32
        most = int(math.log2(max(size) if isinstance(size, list) else size)) - 1
        if layers > most:
            every = math.ceil(layers / most)
            self.fixed |= {f"pooling_{k}": "none" for k in range(1, layers + 1) if k % every}
            self.notes.append(f"a pooling after every {every} layers")

    def _cut_lists(self, space: dict[str, Any], counted: str) -> None:
        """Of networks with fewer layers than lists have, the first so many: the layers' own parameters say so."""
        for name in (name for name, count in BY_LAYER.items() if count == counted):
            values = [value for value in self._values_of(space, name) if isinstance(value, list)]
            if len(values) == 1:
                self.fixed.pop(name, None)
                space.pop(name, None)
                for layer, value in enumerate(values[0], start=1):
                    self.fixed[f"{name}_{layer}"] = value
            elif values:
                raise UntranslatableError(f"{name} as lists beside {counted}")

    def _values_of(self, space: Mapping[str, Any], name: str) -> list[Any]:
        parts = space.get(name, {})
        parts = parts if isinstance(parts, list) else [parts]
        return [self.fixed.get(name), *(value for part in parts for value in part.get("choices", []))]

    def _momentum(self, space: dict[str, Any]) -> None:
        """SGD with momentum, or Nesterov's, by a name of its own, beside others."""
        if True in self.nesterov:
            choices = space.pop("optimizer", {}).get("choices") or [self.fixed.pop("optimizer", "sgd")]
            kept = [value for value in choices if value != "sgd" or False in self.nesterov]
            space["optimizer"] = {"choices": list(dict.fromkeys([*kept, "nesterov"]))}
        listed = [value for each in self._named("optimizer") for value in each.get("values", [])]
        if {"momentum", "sgd_momentum"} & set(listed) and "momentum" not in space:
            with_sgd = [0.0, 0.9] if "sgd" in listed else [0.9]
            others = {"choices": [0.9 if "nesterov" in listed else 0.0]}
            space["momentum"] = [{"choices": with_sgd, "only_if": {"optimizer": ["sgd"]}}, others]
            if "sgd" in listed:
                self.notes.append("sgd has a momentum of 0 or 0.9, which were two optimizers")
        elif {"momentum", "sgd_momentum"} & set(listed) and "sgd" in listed:
            for each in space["momentum"] if isinstance(space["momentum"], list) else [space["momentum"]]:
                each |= {"low": 0.0} if "low" in each else {"choices": [0.0, *each["choices"]]}
            self.notes.append("sgd without momentum is a momentum of 0")
        if {"momentum", "dampening"} & {*space, *self.fixed} and "optimizer" not in {**space, **self.fixed}:
            self.fixed["optimizer"] = "sgd"
        if "smooth" in str([each.get("values") for each in self._named("loss")]) + str(self.fixed.get("loss")):
            searched = space.get("label_smoothing")
            if isinstance(searched, dict) and "low" in searched:
                searched["low"] = 0.0
            elif not searched:
                space["label_smoothing"] = {"choices": [0.0, 0.1]}
            self.notes.append("a loss that is not smoothed has a label smoothing of 0")

    def _schedules(self, space: dict[str, Any]) -> None:
        """What each schedule is set to."""
        settings = self.definition["fixed"].get("schedule_settings", {})
        searched = [value for value in self._values_of(space, "schedule") if value]
        by_name: dict[str, dict[str, Any]] = {}
        for schedule, values in settings.items():
            for key, value in values.items():
                if schedule == "piecewise_linear":
                    continue
                name = SETTINGS.get(schedule, {}).get(key) or self._name(key)
                if name is None:
                    raise UntranslatableError(f"{key} of schedule {schedule}")
                by_name.setdefault(name, {})[SCHEDULES.get(schedule, schedule)] = value
        for name, values in by_name.items():
            if name in space and name != "learning_rate":
                self.notes.append(f"{name} of a schedule is searched instead")
                continue
            if name not in PARAMETERS:
                raise UntranslatableError(f"{name}: there is no such parameter")
            if name == "learning_rate":
                self.fixed.setdefault(name, next(iter(values.values())))
            elif len(set(map(str, values.values()))) == 1 or not searched:
                self.fixed[name] = next(iter(values.values()))
            else:
                each = [{"choices": [value], "only_if": {"schedule": [key]}} for key, value in values.items()]
                del each[-1]["only_if"]
                space[name] = each
        if isinstance(rate := self.fixed.get("learning_rate"), (int, float)) and "learning_rate" in space:
            self.notes.append(f"learning_rate {rate} of a schedule is searched instead")
            del self.fixed["learning_rate"]
        if (times := int(self.definition["fixed"].get("gradient_accumulation", 1))) > 1:
            self.notes.append(f"{times} batches at once are one batch of so many images")
            sizes = space.get("batch_size", {})
            if "choices" in sizes:
                sizes["choices"] = [times * size for size in sizes["choices"]]
            else:
                self.fixed["batch_size"] = times * self.fixed.get("batch_size", PARAMETERS["batch_size"].default)
        if self._named("learning_rate_decay") or "learning_rate_decay" in self.definition["fixed"]:
            self.notes.append("learning_rate_decay is a factor of each epoch")
            self.fixed.setdefault("schedule", "exponential")

    def _leave_out_idle(self, space: dict[str, Any]) -> None:
        """What its network does not have, where it is fixed, or its author says that it had no effect."""
        models = [value for value in self._values_of(space, "model") if value]
        has = {name for model in models for name in traits(model)[0]}
        for name in [
            name for name in self.fixed if name in PARAMETERS and not name.startswith(OWN) and name not in has
        ]:
            self.notes.append(f"{name} = {self.fixed.pop(name)} is nothing that {', '.join(models)} has")
        for each in self.parameters:
            name = self._name(each["name"]) or ""
            if IDLE.search(each.get("note", "")) and name not in has and space.pop(name, None):
                self.notes.append(f"{name} had no effect, and is left out")

    def _give_to_own(self, space: dict[str, Any]) -> None:
        """What describes the network goes to the user's function."""
        for table in (space, self.fixed):
            for name in [name for name in table if base_of(name) in NETWORK and name != "model"]:
                table[f"{OWN}{name}"] = _as_own(table.pop(name))


def _from_the_end(each: Mapping[str, Any]) -> dict[str, Any]:
    """How many stages are frozen where so many at the end are trained, the last layer among them; -1 is all."""
    counts = each["values"] if each["kind"] == "choices" else range(each["low"], each["high"] + 1)
    frozen = [0 if count < 0 else 100 if count < 2 else 1 - count for count in counts]
    return {**each, "kind": "choices", "values": list(dict.fromkeys(frozen))}


def _as_own(domain: Any) -> Any:
    if not isinstance(domain, dict):
        return _plain(domain)
    return domain | ({"choices": list(map(_plain, domain["choices"]))} if "choices" in domain else {})


def _plain(value: Any) -> Any:
    """A value as a user's own network takes it: a list as a text."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    return "none" if value is None else value


def _library(library: str) -> Sequence[str]:
    """The networks that a library has; none where it is not installed."""
    with suppress(ImportError):
        return names_of(library)
    return []


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
