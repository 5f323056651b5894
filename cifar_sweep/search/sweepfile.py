"""Sweep files: TOML to a validated `Sweep`. Errors name the file, the table and the key."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cifar_sweep.config import PARAMETERS, Value, check_parameter, traits
from cifar_sweep.errors import UsageError, nearest

SHIPPED = (Path(__file__).parent.parent / "sweeps", Path(__file__).parent.parent.parent / "sweeps")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PydanticCustomError("number", "not a number")
    return value


def _plain(value: Any) -> Value:
    if not isinstance(value, (bool, int, float, str)):
        raise PydanticCustomError("plain", "not a plain value")
    return value


# Unions of types would complain once per type; these complain once, and `_ACCEPTED` has the words.
Number = Annotated[int | float, PlainValidator(_number)]
Plain = Annotated[Value, PlainValidator(_plain)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Table):
    """A number from `low` to `high`, both included: `log` for a logarithmic scale, `base2` for powers of two only."""

    low: Number
    high: Number
    log: bool = False
    step: int | None = Field(default=None, ge=1)
    base2: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}; low must not be above high")
        if (self.log or self.base2) and self.low <= 0:
            raise ValueError(f"low = {self.low} has no logarithm; a log or base2 range starts above 0")
        if self.base2 and not (_is_power_of_two(self.low) and _is_power_of_two(self.high)):
            raise ValueError(
                f"low = {self.low} and high = {self.high} are not both powers of two; "
                "a base2 range starts and ends at one, such as 16 and 256"
            )
        if sum((self.log, self.base2, self.step is not None)) > 1:
            raise ValueError("log, base2 and step exclude each other; a range takes one of them or none")
        if self.step is not None and (self.high - self.low) % self.step:
            last = self.high - (self.high - self.low) % self.step
            raise ValueError(f"steps of {self.step} from {self.low} do not end at high = {self.high} but at {last}")
        return self

    def __str__(self) -> str:
        kind = ", powers of two" if self.base2 else f", in steps of {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{kind}"


class Choices(_Table):
    """One of a list of values, without order."""

    choices: list[Plain] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Choices":
        twice = [choice for place, choice in enumerate(self.choices) if choice in self.choices[:place]]
        if twice:
            raise ValueError(f"choices has {_shown(twice[0])} twice; each value stands there once")
        return self

    def __str__(self) -> str:
        return f"one of {_list(self.choices)}"


def _kind_of_domain(value: Any) -> str | None:
    """Which of `Range` and `Choices` a table of [space] is meant to be, so that only that one complains."""
    if isinstance(value, (Range, Choices)):
        return type(value).__name__
    return ("Choices" if "choices" in value else "Range") if isinstance(value, dict) else None


Domain = Annotated[Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind_of_domain)]


_PRUNER_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "median": ("startup_trials", "warmup_steps"),
    "percentile": ("startup_trials", "warmup_steps", "percentile"),
    "asha": ("min_steps", "reduction_factor"),
    "hyperband": ("min_steps", "reduction_factor"),
}
Settings = TypeVar("Settings", "SamplerSettings", "PrunerSettings")


def _refuse_idle(settings: Settings, used: tuple[str, ...]) -> Settings:
    """Refuse a key that was changed and would do nothing."""
    for key, field in type(settings).model_fields.items():
        if key not in ("name", *used) and getattr(settings, key) != field.default:
            raise ValueError(f"{key} does nothing for {settings.name!r}; it takes {_list(used) or 'no other key'}")
    return settings


class SamplerSettings(_Table):
    """How trials are chosen: `tpe` (Optuna's default), `random`, or `given`: the sweep's own points and no others."""

    name: Literal["tpe", "random", "given"] = "tpe"
    startup_trials: int = Field(default=10, ge=0, description="tpe: random trials before the model is used")

    @model_validator(mode="after")
    def _check(self) -> "SamplerSettings":
        return _refuse_idle(self, ("startup_trials",) if self.name == "tpe" else ())


class PrunerSettings(_Table):
    """When weak trials are stopped. Steps are epochs, or tenths of a trial's own schedule where epochs are searched."""

    name: Literal["none", "median", "percentile", "asha", "hyperband"] = "median"
    startup_trials: int = Field(default=5, ge=0, description="median, percentile: complete trials before any is pruned")
    warmup_steps: int = Field(default=0, ge=0, description="median, percentile: steps before a trial may be pruned")
    percentile: float = Field(default=25.0, gt=0, le=100, description="percentile: the best share that is kept, in %")
    min_steps: int = Field(default=1, ge=1, description="asha, hyperband: steps before the first decision")
    reduction_factor: int = Field(default=3, ge=2, description="asha, hyperband: one in so many goes on")

    @model_validator(mode="after")
    def _check(self) -> "PrunerSettings":
        return _refuse_idle(self, _PRUNER_KEYS[self.name])


class Preview(_Table):
    """What `--preview` changes: the number of trials, and parameters fixed at other values."""

    trials: int = Field(default=8, ge=1)
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def fixed(self) -> dict[str, Value]:
        """The parameters that a preview fixes."""
        return dict(self.__pydantic_extra__ or {})


# What shortens a given point. Both are then in the point, so that a study can hold whole and shortened runs.
_SHORTENS = {"epochs": "epochs", "train_images": "training images"}


class Point(_Table):
    """A point of the space to try first. `label` says where it comes from, such as a report's run.

    The claim is what somebody else says of this point. It stays in the sweep file: no trial ever gets it as a value.
    """

    label: str = ""
    claimed: Number | None = Field(default=None, description="test accuracy, in percent")
    claimed_seconds: Number | None = Field(default=None, description="training time")
    note: str = Field(default="", description="what its source says besides, or leaves open")
    whole: dict[str, int] = Field(default_factory=dict, description="what a shortened point had before")
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def params(self) -> dict[str, Value]:
        """The point's parameters; those of the space that it leaves out are sampled."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def shortened(self) -> str:
        """In what the point was cut short, as in "3 of 30 epochs"; empty where it was not."""
        has = self.params()
        words = []
        for name, noun in _SHORTENS.items():
            if name in self.whole:
                words.append(f"{has[name]:,} of {format(self.whole[name], ',') if self.whole[name] else 'all'} {noun}")
        return ", ".join(words)


class ClaimedEnsemble(_Table):
    """A claim about the averaged probabilities of several given points, by their labels."""

    label: str = Field(min_length=1)
    members: list[str] = Field(min_length=2)
    claimed: Number | None = None
    note: str = ""


def _named(value: Any) -> Any:
    """``pruner = "median"`` stands for ``pruner = { name = "median" }``."""
    return {"name": value} if isinstance(value, str) else value


class Sweep(_Table):
    """A whole sweep. `fixed` and `space` take the names of `cifar_sweep.config.PARAMETERS`."""

    name: str = Field(min_length=1)
    description: str = ""
    trials: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
    keep_weights: int = Field(default=5, ge=1, description="weights are kept of so many of the best trials")
    keep_megabytes: int = Field(default=5000, ge=1, description="but not of more than fit into so much")
    sampler: Annotated[SamplerSettings, BeforeValidator(_named)] = SamplerSettings()
    pruner: Annotated[PrunerSettings, BeforeValidator(_named)] = PrunerSettings()
    fixed: dict[str, Plain] = Field(default_factory=dict)
    space: dict[str, Domain] = Field(default_factory=dict)
    enqueue: list[Point] = Field(default_factory=list)
    ensemble: list[ClaimedEnsemble] = Field(default_factory=list)
    preview: Preview = Preview()

    @property
    def given(self) -> bool:
        """Whether its own points are all that is run."""
        return self.sampler.name == "given"

    @property
    def size(self) -> int:
        """How many trials it has."""
        return len(self.enqueue) if self.given else self.trials

    def identity(self) -> dict[str, Any]:
        """What must not change under a study: everything that decides what its numbers mean."""
        return self.model_dump(mode="json", include={"seed", "sampler", "pruner", "fixed", "space"})


def names() -> dict[str, Path]:
    """Every sweep that can be run by name: those of ``sweeps/`` here, then those that come with the package."""
    found: dict[str, Path] = {}
    for folder in (Path("sweeps"), *SHIPPED):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """The file of the sweep `name`, which may be a path.

    Raises:
        UsageError: there is none.
    """
    if name.endswith(".toml") or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise UsageError(f"{name}: there is no such sweep file; give a path to a TOML file or one of {_list(names())}.")
    known = names()
    if name not in known:
        raise UsageError(f"sweep {name!r} is unknown; {nearest(name, known)}; or give a path to a TOML file.")
    return known[name]


def load(
    path: Path, *, changes: Mapping[str, Value] | None = None, preview: bool = False, only: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file, apply its preview if asked, then `changes` as `--set` gives them.

    A change named like a parameter fixes it; any other names a key of the sweep, with a dot below a table. Of a sweep
    of given points, `only` takes those labels; `epochs` and `train_images` then shorten each point that has more.

    Raises:
        UsageError: the file is not TOML, or a key or value is not accepted; the message says where.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the sweep file cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: the sweep file cannot be read: it is not text in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}.") from None
    return from_mapping({"name": path.stem} | raw, where=str(path), changes=changes, preview=preview, only=only)


def from_mapping(
    raw: Mapping[str, Any],
    *,
    where: str,
    changes: Mapping[str, Value] | None = None,
    preview: bool = False,
    only: Sequence[str] = (),
) -> Sweep:
    """A sweep from what a file would hold, and its name; the rest as in `load`. `where` begins every message."""
    sweep = parse(raw, where=where)
    if any(point.whole for point in sweep.enqueue):
        raise UsageError(f"{where}: [[enqueue]]: whole is written by a run that shortens a point, not in a file.")
    if sweep.given and "trials" in raw:
        raise UsageError(
            f"{where}: trials does nothing for sampler 'given'; it has as many trials as [[enqueue]] points."
        )
    _check_ensembles(sweep, where=where)
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
    """`sweep` as its [preview] has it; of given points the first ones."""
    fixed = sweep.preview.fixed()
    if not sweep.given:
        return _changed(sweep, {"trials": sweep.preview.trials, **fixed}, where=where)
    return _changed(sweep.model_copy(update={"enqueue": sweep.enqueue[: sweep.preview.trials]}), fixed, where=where)


def parse(raw: Mapping[str, Any], *, where: str) -> Sweep:
    """Validate the plain data of a sweep. `where` begins every message.

    Raises:
        UsageError: a key or value is not accepted.
    """
    try:
        sweep = Sweep.model_validate(dict(raw))
    except ValidationError as error:
        raise UsageError(_sentence(error, raw, where=where)) from None
    _check_given(sweep, where=where)
    _check_parameters(sweep, where=where)
    return sweep


def _check_given(sweep: Sweep, *, where: str) -> None:
    """What a sweep of given points needs, and what no other can have."""
    if not sweep.given:
        if sweep.ensemble:
            raise UsageError(f"{where}: [[ensemble]] is of given points; accepted with sampler = 'given'.")
        return
    if sweep.pruner.name != "none":
        raise UsageError(
            f"{where}: pruner {sweep.pruner.name!r} would end given points early; accepted: pruner = 'none'."
        )
    labels = [point.label for point in sweep.enqueue]
    if not labels or "" in labels or len(set(labels)) < len(labels):
        raise UsageError(f"{where}: sampler 'given' needs points in [[enqueue]], each with a label of its own.")


def _check_ensembles(sweep: Sweep, *, where: str) -> None:
    """Refuse a claimed ensemble of a point that is not there; with `--only`, some of them are not, afterwards."""
    labels = [point.label for point in sweep.enqueue]
    for ensemble in sweep.ensemble:
        for member in ensemble.members:
            if member not in labels:
                place = f"{where}: [[ensemble]] {ensemble.label}"
                raise UsageError(f"{place}: there is no point {member!r}; {nearest(member, labels)}.")


def _changed(sweep: Sweep, changes: Mapping[str, Value], *, where: str) -> Sweep:
    """`sweep` with parameters fixed and keys replaced."""
    raw = sweep.model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        table, _, inner = key.rpartition(".")
        if sweep.given:
            _check_change_of_given(sweep, key, where=where)
        if sweep.given and key in _SHORTENS:
            check_parameter(key, value, where=where)
            for point in raw["enqueue"]:
                own = point.get(key, PARAMETERS[key].default)
                point[key] = _shorter(own, value)
                if point[key] != own:
                    point["whole"].setdefault(key, own)
        elif key in PARAMETERS:
            raw["space"].pop(key, None)
            raw["fixed"][key] = check_parameter(key, value, where=where)
        elif key in _SETTABLE:
            raw[key] = value
        elif table in ("sampler", "pruner") and inner:
            settings = _named(raw[table])
            raw[table] = settings | {inner: value} if isinstance(settings, dict) else settings
        else:
            raise UsageError(f"{where}: there is no key {key!r}; {nearest(key, [*PARAMETERS, *_SETTABLE])}.")
    fixed = raw["fixed"]
    # A hand point that contradicts what was just fixed would be a second name for another point.
    raw["enqueue"] = [
        point for point in raw["enqueue"] if all(point[name] == fixed[name] for name in point if name in fixed)
    ]
    return parse(raw, where=where)


def _check_change_of_given(sweep: Sweep, key: str, *, where: str) -> None:
    """Given points are run as they are; they can be shortened, where they say how long they are."""
    if key == "trials":
        raise UsageError(f"{where}: sweep {sweep.name!r} has given points; choose among them with --only.")
    if key in _SHORTENS and key not in sweep.space:
        raise UsageError(
            f"{where}: {key} is not in [space] of {sweep.name!r}, so its given points cannot be shortened."
        )
    if key in PARAMETERS and key not in (*_SHORTENS, "precision"):
        raise UsageError(
            f"{where}: sweep {sweep.name!r} runs its given points as they are; accepted: epochs and train_images, "
            "which shorten them, and precision."
        )


def _shorter(own: Any, cap: Any) -> Any:
    """The smaller one; 0 (of train_images) is all there are."""
    return min(own, cap) if own and cap else own or cap


_SETTABLE = ("trials", "seed", "keep_weights", "keep_megabytes", "sampler", "pruner")


def _check_parameters(sweep: Sweep, *, where: str) -> None:
    """Names and values of `fixed`, `space`, `enqueue` and `preview`, against `PARAMETERS` and the models in play."""
    for name, value in sweep.fixed.items():
        check_parameter(name, value, where=f"{where}: [fixed]")
        if name in sweep.space:
            raise UsageError(f"{where}: {name} stands in [fixed] and in [space]; it belongs in one of them.")
    for name, domain in sweep.space.items():
        _check_domain(name, domain, where=f"{where}: [space]")
    for number, point in enumerate(sweep.enqueue, start=1):
        for name, value in point.params().items():
            place = f"{where}: [[enqueue]] {number}"
            check_parameter(name, value, where=place)
            if name not in sweep.space and name not in sweep.fixed:
                raise UsageError(f"{place}: {name} is not in [space]; {nearest(name, sweep.space)}.")
            if name in sweep.fixed and value != sweep.fixed[name]:
                fixed = _shown(sweep.fixed[name])
                raise UsageError(f"{place}: {name} = {_shown(value)} contradicts [fixed], where it is {fixed}.")
            if name in sweep.space and not contains(sweep.space[name], value):
                domain = sweep.space[name]
                raise UsageError(f"{place}: {name} = {_shown(value)} is outside of its [space]: {domain}.")
    for name, value in sweep.preview.fixed().items():
        check_parameter(name, value, where=f"{where}: [preview]")
    _check_used(sweep, where=where)


def _check_domain(name: str, domain: Range | Choices, *, where: str) -> None:
    values = domain.choices if isinstance(domain, Choices) else [domain.low, domain.high]
    for value in values:
        check_parameter(name, value, where=where)
    if isinstance(domain, Range) and PARAMETERS[name].kind is float and (domain.step or domain.base2):
        raise UsageError(f"{where}: {name} is no whole number, so base2 and step do not fit; accepted: low, high, log.")


def _check_used(sweep: Sweep, *, where: str) -> None:
    """Refuse a parameter that no model of the sweep has: an option that would do nothing."""
    models = values_of(sweep, "model")
    has = frozenset[str]().union(*(traits(str(model))[0] for model in models))
    for table, names_in_table in (("fixed", sweep.fixed), ("space", sweep.space)):
        for name in names_in_table:
            if name not in has:
                place = f"{where}: [{table}]"
                raise UsageError(f"{place}: {name} does nothing for {_list(models)}; accepted: {_list(sorted(has))}.")
            if name == "momentum" and values_of(sweep, "optimizer") == ["adam"] and sweep.fixed.get(name) != 0:
                raise UsageError(f"{where}: [{table}]: momentum does nothing for adam; it belongs to sgd and rmsprop.")


def values_of(sweep: Sweep, name: str) -> list[Value]:
    """The values that the categorical parameter `name` can take in this sweep."""
    domain = sweep.space.get(name)
    if isinstance(domain, Choices):
        return domain.choices
    return [sweep.fixed.get(name, PARAMETERS[name].default)]


def contains(domain: Range | Choices, value: Value) -> bool:
    """Whether `value` lies in `domain`."""
    if isinstance(domain, Choices):
        return value in domain.choices
    if isinstance(value, str) or not domain.low <= value <= domain.high:
        return False
    if domain.base2:
        return _is_power_of_two(value)
    return domain.step is None or (value - domain.low) % domain.step == 0


def _is_power_of_two(value: float) -> bool:
    return value == int(value) and value >= 1 and int(value) & (int(value) - 1) == 0


def _list(words: Iterable[Any]) -> str:
    return ", ".join(str(word) for word in words)


def _shown(value: Any) -> str:
    """A value as TOML writes it, nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)


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
    "too_short": "at least one value",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than_equal": "a whole number of at least {ge}",
    "greater_than": "a number above {gt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "union_tag_not_found": "a table with low and high, or with choices; a single value belongs in [fixed]",
}
_SETTINGS: dict[str, type[BaseModel]] = {"sampler": SamplerSettings, "pruner": PrunerSettings}


def _sentence(error: ValidationError, raw: Mapping[str, Any], *, where: str) -> str:
    """Pydantic's most telling complaint as one sentence: file, table, key, what is wrong, what would be accepted."""
    complaints = error.errors()
    # A misspelt key is also a missing one: the unknown key tells more.
    first = next((item for item in complaints if item["type"] == "extra_forbidden"), complaints[0])
    place, path = _place(first["loc"], where=where)
    key, value = path[-1], first["input"]
    if first["type"] == "extra_forbidden":
        accepted = list(_accepted_keys(path, raw))
        close = get_close_matches(key, accepted, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{place}: there is no key {key!r}; {hint}accepted: {_list(accepted)}."
    if first["type"] == "missing":
        return f"{place}: {key} is missing; accepted: low and high, or choices."
    if first["type"] == "literal_error":
        known = get_args(_SETTINGS[path[0]].model_fields["name"].annotation)
        return f"{where}: there is no {path[0]} {_shown(value)}; {nearest(str(value), known)}."
    if first["type"] == "value_error":
        return f"{place}: {key}: {first['ctx']['error']}."
    if isinstance(first["loc"][-1], int):
        key = f"a value of {key}"
    accepts = _ACCEPTED.get(first["type"], str(first["msg"])).format_map(first.get("ctx", {}))
    if first["type"] == "model_type" and key in _SETTINGS:
        accepts = f"the name of a {key} or a table with it"
    if first["type"] == "list_type" and key == "enqueue":
        accepts = "a list of points, each begun by [[enqueue]]"
    shown = "" if isinstance(value, dict) else f" = {_shown(value)}"
    return f"{place}: {key}{shown} is not accepted; it takes {accepts}."


def _place(loc: Sequence[int | str], *, where: str) -> tuple[str, list[str]]:
    """Where a complaint stands, in words; and its path of keys, without pydantic's own names and places in lists."""
    path = [str(part) for part in loc if isinstance(part, str) and part not in ("Range", "Choices")]
    if path[0] == "enqueue" and len(path) > 1:
        return f"{where}: [[enqueue]] {int(loc[1]) + 1}", path
    table = ".".join(path[:-1])
    return f"{where}: [{table}]" if table else where, path


def _accepted_keys(path: Sequence[str], raw: Mapping[str, Any]) -> Iterable[str]:
    if path[0] in _SETTINGS and len(path) > 1:
        return _SETTINGS[path[0]].model_fields
    if path[0] == "space" and len(path) > 2:
        return Choices.model_fields if "choices" in raw["space"][path[1]] else (*Range.model_fields, "choices")
    return (name for name in Sweep.model_fields if name != "name")
