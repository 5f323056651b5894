"""What people search over, read from a file of definitions in a neutral form: each as a sweep file of ours, and run.

    python benchmarks/spaces.py FILE                 # writes and checks a sweep file for each definition
    python benchmarks/spaces.py FILE --train         # two trials of each besides, exported and predicted with
    python benchmarks/spaces.py FILE --out DIR --only O5 O42

FILE is a JSON list of objects with `id`, `method`, `stopping`, `metric`, `trials`, `data` (`size`, `channels`,
`classes`), `fixed`, `parameters` (each a `name` and a `kind`: `choices`, `range` or `int`) and `beyond`. The last line
says how many of them run. A definition is counted as not run where any of its parameters, or of its values, has no
meaning here. Trained are a few hundred generated images of its own size, channels and classes, for one epoch:
whether it runs is seen, not how well. What is said of a sweep with "note:" runs otherwise than its author had it.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from cifar_sweep.errors import CifarSweepError
from cifar_sweep.parameters import BY_LAYER, MOST_LAYERS, PARAMETERS, VGG_MODELS
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.training.models.named import names_of

IMAGES = (200, 60, 40)  # training, validation and test images that are generated where a sweep is trained
LARGE = 64  # pixels of a side: of larger images trials are trained one at a time, on fewer
TRIALS = 20  # where the definition does not say how many
METHODS = {"grid": "grid", "random": "random", "hyperband": "random"}
STOPPING = {"hyperband": "hyperband", "asha": "asha", "median": "median"}
GROWTH = {0.5: "half", 1: "same", 2: "double"}
SCHEDULES = {"cosine_restarts": "warm_restarts", "constant": "none"}
SETS = {
    True: "crop", False: "none", "light": "flip", "medium": "crop", "domain": "affine", "crop": "crop", "flip": "flip",
    "none": "none",
}  # fmt: skip
STRENGTHS = {"rotation": ("rotation", 15.0), "zoom": ("zoom", 0.1), "shift": ("shift", 0.1), "flip": ("flip", 0.5)}
NAMES = {
    "dense_dropout": "dropout", "blocks": "conv_layers", "schedule_t_0": "restart_epochs", "ema": "ema_decay",
    "schedule_t_mult": "restart_factor", "schedule_t_max": "cosine_epochs", "schedule_factor": "plateau_factor",
    "schedule_min_learning_rate": "lowest_rate", "schedule_patience": "plateau_patience",
    "schedule_power": "polynomial_power", "schedule_max_lr_factor": "onecycle_start", "norm_place": "norm_position",
    "schedule_warmup_fraction": "onecycle_peak", "network": "model", "mixup_probability": "mix_probability",
    "cutmix_probability": "mix_probability", "training_images": "train_images",
    "bias_learning_rate_factor": "bias_rate", "schedule_end_learning_rate": "lowest_rate",
    "asgd_alpha": "asgd_power", "asgd_lambda": "asgd_decay",
}  # fmt: skip
SETTINGS = {
    "step": {"step_size": "step_size", "gamma": "gamma"}, "exponential": {"gamma": "gamma"},
    "multistep": {"milestones": "milestones", "gamma": "gamma"}, "cosine": {"t_max": "cosine_epochs"},
    "plateau": {
        "factor": "plateau_factor", "patience": "plateau_patience", "min_learning_rate": "lowest_rate",
    },
    "cyclic": {
        "base_learning_rate": "lowest_rate", "max_learning_rate": "learning_rate", "step_up": "cycle_up",
        "step_down": "cycle_down", "mode": "cycle_mode",
    },
}  # fmt: skip
# Where what has one place here, or the usual one, stands there.
PLACES = {
    ("activation", "conv"), ("activation", "dense"), ("batch_norm", "conv"), ("learning_rate", "backbone"),
    ("learning_rate", "head"), ("dropout", "dense"),
}  # fmt: skip
SWITCHES = {"conv_dropout_on", "dense_dropout_on"}  # a rate of 0 is off
OWN_FUNCTION = '''

def {name}(shape):
    """Stands for a network that neither this project, torchvision nor timm has, as its user would bring it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, shape.classes)
    )
'''


class UntranslatableError(Exception):
    """A definition has a parameter or a value that has no meaning here."""


class Translation:
    """A definition as a sweep of ours: its plain data, functions of its user's own, and notes."""

    def __init__(self, definition: Mapping[str, Any], folder: Path) -> None:
        self.definition, self.folder = definition, folder
        self.fixed: dict[str, Any] = {}
        self.space: dict[str, Any] = {}
        self.notes: list[str] = []
        self.layers = self._layers()

    def _layers(self) -> dict[str, int]:
        """The most layers that a trial can have, of each kind."""
        known = {"conv_layers": 3, "dense_layers": 1}
        fixed = self.definition["fixed"]
        for name, counted in (("conv_layers", "conv_layers"), ("blocks", "conv_layers"), ("dense_layers",) * 2):
            known[counted] = int(fixed.get(name, known[counted]))
            for each in self._named(name):
                known[counted] = int(max(each["values"]) if each["kind"] == "choices" else each["high"])
        for each in self.definition["parameters"]:
            counted = BY_LAYER.get(NAMES.get(each["name"], each["name"]), "")
            if counted and each.get("layer"):
                known[counted] = max(known[counted], int(each["layer"]))
        return known

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.definition["parameters"] if each["name"] == name]

    def translated(self) -> dict[str, Any]:
        """The sweep as plain data; UntranslatableErrorError with a reason where it has none."""
        definition = self.definition
        if definition["beyond"]:
            raise UntranslatableError(f"{', '.join(definition['beyond'])}: nothing here has this meaning")
        for name, value in definition["fixed"].items():
            self._fix(name, value)
        for each in definition["parameters"]:
            self._search(each)
        self._network()
        self._conditions()
        method = METHODS.get(definition["method"], "tpe")
        stopping = STOPPING.get(definition["stopping"] or definition["method"] or "", "none")
        if stopping in ("hyperband", "asha") and "epochs" in self.space:
            self.notes.append(f"{stopping} compares trials by epochs, which are searched: median instead")
            stopping = "median"
        trials = {} if method == "grid" and not definition["trials"] else {"trials": definition["trials"] or TRIALS}
        sweep = {"name": definition["id"], **trials, "sampler": method, "pruner": stopping}
        if definition["metric"] in ("loss", "f1"):
            sweep["metric"] = definition["metric"]
        if (runs := definition["fixed"].get("runs_per_trial", 1)) > 1:
            sweep["confirm"] = [5, int(runs)]
            self.notes.append(f"the best five are repeated under {runs} seeds, not every trial")
        if "seed" in definition["fixed"] or "sampler_seed" in definition["fixed"]:
            sweep["seed"] = int(definition["fixed"].get("sampler_seed", definition["fixed"].get("seed", 0)))
        if first := definition["fixed"].get("random_trials_first"):
            sweep["sampler"] = {"name": "tpe", "startup_trials": int(first)}
        return sweep | {"fixed": self.fixed, "space": self.space}

    def _fix(self, name: str, value: Any) -> None:
        match name:
            case "seed" | "sampler_seed" | "random_trials_first" | "runs_per_trial" | "schedule_settings":
                return  # of the sweep, or read with the schedule
            case "network" | "networks_one_study_each":
                names = value if isinstance(value, list) else [value]
                self._search({"name": "network", "kind": "choices", "values": names})
            case "augmentation":
                for part in value if isinstance(value, list) else [value]:
                    self._augment(part, beside=bool(self._named("augmentation")))
            case "optimizer" if value == "momentum":
                self.fixed |= {"optimizer": "sgd", "momentum": 0.9}
            case "images_per_class":
                self.fixed["train_images"] = int(value) * (self.definition["data"]["classes"] or 10)
            case "ema":
                if value and "ema_decay" not in self.definition["fixed"]:
                    self.fixed["ema_decay"] = 0.999
            case "global_pooling":
                if value not in (True, "avg"):
                    raise UntranslatableError(f"global_pooling = {value}")
                self.fixed["global_pooling"] = True
            case "padding":
                self.fixed["padding"] = {0: "valid", "valid": "valid"}.get(value, "same")
            case "schedule" if value == "piecewise_linear":
                self._piecewise_linear()
            case "init" | "dense_activation" | "pooling" | "filters" | "kernel_size" | "image_size":
                self.fixed[name] = value
            case _:
                self._put(NAMES.get(name, name), "fixed", self._value(NAMES.get(name, name), value))

    def _piecewise_linear(self) -> None:
        """Up to a peak and down to nothing, in straight lines: a warm-up, then a polynomial of power 1."""
        settings = self.definition["fixed"].get("schedule_settings", {}).get("piecewise_linear", {})
        self.fixed |= {"schedule": "polynomial", "warmup_epochs": int(settings.get("peak_epoch", 5))}

    def _augment(self, part: Any, *, beside: bool) -> None:
        """One of several fixed changes of images; `beside` those that are searched, which have the names of sets."""
        strength, value = STRENGTHS.get(part, ("", 0.0))
        if part == "crop" and beside:
            strength, value, part = "shift", 0.125, "shift"
        if part in ("none", False):
            self.fixed.setdefault("augmentation", "none")
        elif part in ("crop", True) or part in PARAMETERS["augmentation"].choices[4:]:
            self.fixed["augmentation"] = SETS.get(part, part)
        elif strength:
            self.fixed[strength] = value
        else:
            self.notes.append(f"augmentation {part} is left out")

    def _search(self, each: Mapping[str, Any]) -> None:
        own, name = each["name"], NAMES.get(each["name"], each["name"])
        if own in SWITCHES:
            return
        if as_lists := each.get("as_lists"):  # what the words stand for
            self._search({"name": "filters", "kind": "choices", "values": list(as_lists.values())})
            return
        if own == "asgd_t0":
            self.notes.append("asgd_t0 changes no result: what it averages is validated by nobody")
            return
        if own == "nesterov":  # a switch of sgd
            self.space.setdefault("optimizer", {"choices": []})["choices"].append("nesterov")
            return
        if own == "dropout" and each.get("place") in ("input", "conv"):
            name = f"{each['place']}_dropout"
        if own == "activation" and each.get("place") == "dense":
            name = "dense_activation"
        if own == "batch_norm" and each.get("place") == "dense":
            name = "dense_batch_norm"
        if own == "learning_rate" and each.get("part") == "head":
            name = "head_rate"
        if own == "class_weights" and "class_index" in each:
            name = f"class_weights_{each['class_index'] + 1}"
        if own == "hidden_units" and not self._named("network"):
            name = "hidden_units"
        place = each.get("place", each.get("part"))
        if place and own == name and (own, place) not in PLACES:
            raise UntranslatableError(f"{own} of {place} parts alone")
        domain = self._domain(name, each)
        if "layer" in each:
            self._put(f"{name}_{each['layer']}", "space", domain)
        elif each.get("by_layer"):
            if name not in BY_LAYER:
                raise UntranslatableError(f"{own} by layer")
            for layer in range(1, self.layers[BY_LAYER[name]] + 1):
                self._put(f"{name}_{layer}", "space", domain)
        else:
            self._put(name, "space", domain)

    def _put(self, name: str, place: str, value: Any) -> None:
        if name not in PARAMETERS:
            raise UntranslatableError(f"{name}: there is no such parameter")
        (self.fixed if place == "fixed" else self.space)[name] = value
        if place == "space":
            self.fixed.pop(name, None)

    def _domain(self, name: str, each: Mapping[str, Any]) -> dict[str, Any]:
        if each["kind"] == "choices":
            values = list(dict.fromkeys(_hashable(self._value(name, value)) for value in each["values"]))
            return {"choices": [list(value) if isinstance(value, tuple) else value for value in values]}
        low, high, step = each["low"], each["high"], each.get("step")
        parameter = PARAMETERS.get(name)
        if parameter is not None and parameter.high_is_open and parameter.high == high:
            high = 0.999 * high
        if f"{each['name']}_on" in each.get("only_if", {}):
            low = 0  # a rate of 0 is off
        if step and each["kind"] == "range":
            count = round((high - low) / step)
            return {"choices": [round(low + k * step, 10) for k in range(count + 1)]}
        found = {"low": low, "high": high}
        if step and not each.get("log"):
            found |= {"step": int(step), "high": low + (high - low) // step * step}
        return found | ({"log": True} if each.get("log") and low > 0 else {})

    def _value(self, name: str, value: Any) -> Any:
        """A value in our words; UntranslatableErrorError where there is none."""
        if name == "filter_growth":
            return GROWTH.get(value, value if isinstance(value, str) else f"{value:g}")
        if name == "augmentation":
            value = SETS.get(value, value)
        if name == "schedule":
            value = SCHEDULES.get(value, value)
        if name == "norm_position":
            value = f"{value}_activation"
        if name == "ema_decay" and isinstance(value, bool):
            return 0.999 if value else 0.0
        if name == "model":
            return self._model(value)
        if isinstance(value, list):
            return value
        if name in PARAMETERS:
            try:
                return PARAMETERS[name].check(value)
            except ValueError as error:
                raise UntranslatableError(f"{name}: {error}") from None
        return value

    def _model(self, name: str) -> str:
        if name in VGG_MODELS:
            return name
        if name in ("vgg6", "own_cnn", "mlp", "lenet"):
            return "cnn"
        for library, named in (("torchvision", name), ("torchvision", LIKE.get(name, "")), ("timm", name)):
            if named in _library(library):
                return f"{library}:{named}"
        function = re.sub(r"\W", "_", name)
        file = self.folder / f"own_{re.sub(r'[^0-9a-z]', '', self.definition['id'].lower())}.py"
        text = file.read_text() if file.is_file() else "from torch import nn\n"
        if f"def {function}(" not in text:
            file.write_text(text + OWN_FUNCTION.format(name=function))
        self.notes.append(f"{name} is a function of the user's own")
        return f"{file.stem}:{function}"

    def _network(self) -> None:
        """What the network is, where only its parts are said."""
        definition = self.definition
        models = self.space.get("model", {}).get("choices", [])
        names = [*definition["fixed"].get("networks_one_study_each", []), definition["fixed"].get("network")]
        names += [value for each in self._named("network") for value in each["values"]]
        if len(models) == 1:
            self.fixed["model"] = models[0]
            del self.space["model"]
        elif not models:
            self.fixed["model"] = "torchvision:resnet18" if "pretrained" in self.fixed else "cnn"
        if "momentum" in {**self.space, **self.fixed} and "optimizer" not in {**self.space, **self.fixed}:
            self.fixed["optimizer"] = "sgd"
        if "vgg6" in names:
            self.fixed |= {"conv_layers": 2, "convs_per_block": 2, "filters": [64, 128], "dense_units": 256}
            del self.fixed["conv_layers"]
        if "lenet" in names:
            self.fixed.setdefault("kernel_size", 5)
        if "mlp" in names:
            self.notes.append("the perceptron is a cnn without convolutions")
            self.fixed.pop("conv_layers", None)
            self.space["conv_layers"] = {"choices": [0, 3]} if "own_cnn" in names else {"choices": [0]}
        if "hidden_units" in self.space:
            self.space["dense_units"] = self.space.pop("hidden_units")
        for counted, most in self.layers.items():
            listed = [n for n, c in BY_LAYER.items() if c == counted and self._lists(n)]
            if listed:
                self.fixed.pop(counted, None)
                self.space.pop(counted, None)
            elif counted not in self.space and most != PARAMETERS[counted].default:
                self.fixed[counted] = most
            if most > MOST_LAYERS:
                raise UntranslatableError(f"{most} {counted}; at most {MOST_LAYERS}")

    def _lists(self, name: str) -> bool:
        values = [self.fixed.get(name), *self.space.get(name, {}).get("choices", [])]
        return any(isinstance(value, list) for value in values)

    def _conditions(self) -> None:
        """What each schedule is set to."""
        settings = self.definition["fixed"].get("schedule_settings", {})
        searched = self.space.get("schedule", {}).get("choices", [])
        by_name: dict[str, dict[str, Any]] = {}
        for schedule, values in settings.items():
            for key, value in values.items():
                if schedule == "piecewise_linear":
                    continue
                if key not in SETTINGS.get(schedule, {}):
                    raise UntranslatableError(f"{key} of schedule {schedule}")
                by_name.setdefault(SETTINGS[schedule][key], {})[SCHEDULES.get(schedule, schedule)] = value
        for name, values in by_name.items():
            if name not in PARAMETERS:
                raise UntranslatableError(f"{name}: there is no such parameter")
            if name == "learning_rate":
                self.fixed.setdefault(name, next(iter(values.values())))
            elif len(set(map(str, values.values()))) == 1 or not searched:
                self.fixed[name] = next(iter(values.values()))
            else:
                each = [{"choices": [value], "only_if": {"schedule": [key]}} for key, value in values.items()]
                del each[-1]["only_if"]
                self.space[name] = each
        if isinstance(rate := self.fixed.get("learning_rate"), (int, float)) and "learning_rate" in self.space:
            self.notes.append(f"learning_rate {rate} of a schedule is searched instead")
            del self.fixed["learning_rate"]


LIKE = {"vgg": "vgg16", "mobilenet": "mobilenet_v2"}


def _library(library: str) -> Sequence[str]:
    """The networks that a library has; none where it is not installed."""
    with suppress(ImportError):
        return names_of(library)
    return []


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def image_size(definition: Mapping[str, Any]) -> int:
    """Pixels of a side of its images; 32 where it does not say."""
    return int(definition["data"]["size"] or 32)


def sweep_of(definition: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The definition's sweep, checked, and notes; UntranslatableError, or an error of ours, with the reason."""
    translation = Translation(definition, folder)
    data = translation.translated()
    if (size := image_size(definition)) != PARAMETERS["image_size"].default:
        data["fixed"]["image_size"] = size
    parse(data, where=definition["id"])
    return data, translation.notes


def images(folder: Path, *, size: int, channels: int, classes: int) -> Path:
    """A folder of generated images: of each class noise around its own brightness and stripes."""
    generator = np.random.default_rng(0)
    for part, count in zip(("train", "val", "test"), IMAGES, strict=True):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(-(-count // classes) if size <= LARGE else 3):
                stripes = 100 * (np.arange(size) // (label + 1) % 2)
                pixels = generator.integers(0, 80, (size, size, 3)) + stripes[:, None] + 7 * label % 70
                image = Image.fromarray(pixels.astype(np.uint8)).convert("L" if channels == 1 else "RGB")
                image.save(place / f"{number}.png")
    return folder


def command(*words: str, folder: Path) -> None:
    """Run a command of ours; UntranslatableErrorError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "cifar_sweep", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [str(done.returncode)]
        told = next((line for line in lines if "error:" in line or "failed" in line), lines[-1])
        raise UntranslatableError(f"{words[0]}: {told}")


def train(definition: Mapping[str, Any], file: Path, pictures: Callable[..., Path]) -> None:
    """Two trials of a sweep for an epoch, exported, and a prediction."""
    data, folder, name = definition["data"], file.parent, definition["id"]
    source = pictures(image_size(definition), data["channels"] or 3, data["classes"] or 10)
    storage = f"sqlite:///{name}.db"
    together = "2" if image_size(definition) <= LARGE else "1"  # memory
    small = ["--set", "epochs=1", "--set", "train_images=0", "--set", "validation_images=0", "--set", "batch_size=16"]
    if "pretrained" in file.read_text():
        small += ["--set", "pretrained=false"]
    command("run", file.name, "--storage", storage, "--data", str(source), "--trials", "2", "--workers", "1",
            "--group", together, "--set", "pruner=none", *small, folder=folder)  # fmt: skip
    command("export", name, "--storage", storage, "--out", f"export-{name}", folder=folder)
    command("predict", f"export-{name}", str(next((source / "test").rglob("*.png"))), folder=folder)


def check(definition: Mapping[str, Any], folder: Path, pictures: Callable[..., Path] | None) -> tuple[bool, str]:
    """Whether a definition runs, and what is to be said of it."""
    began = time.monotonic()
    try:
        data, notes = sweep_of(definition, folder)
        file = folder / f"{definition['id']}.toml"
        file.write_text(tomli_w.dumps({key: value for key, value in data.items() if key != "name"}))
        if pictures is not None:
            train(definition, file, pictures)
    except (UntranslatableError, CifarSweepError) as error:
        return False, str(error)
    took = f"{time.monotonic() - began:.0f} s" if pictures is not None else "reads"
    return True, "; ".join([took, *(f"note: {note}" for note in notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--out", type=Path, help="where sweep files go; a temporary folder if not given")
    parser.add_argument("--only", nargs="*", help="definitions by their ids")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    folder = asked.out or Path(tempfile.mkdtemp(prefix="spaces-"))
    folder.mkdir(parents=True, exist_ok=True)
    definitions = [each for each in json.loads(asked.file.read_text()) if not asked.only or each["id"] in asked.only]
    made: dict[tuple[int, int, int], Path] = {}

    def pictures(size: int, channels: int, classes: int) -> Path:
        return made[size, channels, classes]

    if asked.train:
        for each in definitions:
            key = image_size(each), each["data"]["channels"] or 3, each["data"]["classes"] or 10
            if key not in made:
                place = folder / "images-{}px-{}-{}".format(*key)
                made[key] = images(place, size=key[0], channels=key[1], classes=key[2]).resolve()
    with ThreadPoolExecutor(asked.jobs if asked.train else 1) as pool:
        results = pool.map(lambda each: check(each, folder, pictures if asked.train else None), definitions)
        good = 0
        for each, (runs, words) in zip(definitions, results, strict=True):
            good += runs
            print(f"{each['id']:5} {'runs' if runs else 'NO  '} {words}", flush=True)
    print(f"sweep files: {folder}")
    print(f"{good} of {len(definitions)} run")


if __name__ == "__main__":
    main()
