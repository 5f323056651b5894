"""A sweep: what is searched, by which sampler and pruner, and which points are tried first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, model_validator
from pydantic_core import PydanticCustomError

from cifar_sweep.parameters import BY_LAYER, OWN, PARAMETERS, Value, known_beside


def _check_number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PydanticCustomError("number", "not a number")
    return value


def _check_value(value: Any) -> Value:
    if not isinstance(value, (bool, int, float, str)):
        raise PydanticCustomError("plain", "not a plain value")
    return value


def _check_confirm(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or [type(part) for part in value] != [int, int] or min(value) < 1:
        raise PydanticCustomError("confirm", "not two whole numbers")
    return tuple(value)


# Unions of types would complain once per type; these complain once, and `_ACCEPTED` has the words.
Number = Annotated[int | float, PlainValidator(_check_number)]
Plain = Annotated[Value, PlainValidator(_check_value)]


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
            fault = f"low = {self.low} and high = {self.high} are not both powers of two"
            raise ValueError(f"{fault}; a base2 range starts and ends at one, such as 16 and 256")
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
            raise ValueError(f"choices has {in_toml(twice[0])} twice; each value stands there once")
        return self

    def __str__(self) -> str:
        return f"one of {listed(self.choices)}"


def _domain_class(value: Any) -> str | None:
    """Which class a table of [space] is meant to be, so that only that one complains."""
    if isinstance(value, (Range, Choices, Cases)):
        return type(value).__name__
    if isinstance(value, list):
        return "Cases" if value and all(isinstance(each, dict) for each in value) else None
    if isinstance(value, dict) and "cases" in value:
        return "Cases"
    return ("Choices" if "choices" in value else "Range") if isinstance(value, dict) else None


class _OnlyIf(_Table):
    only_if: dict[str, list[Plain]] = Field(default_factory=dict)

    @property
    def condition(self) -> str:
        """When it holds, in words that are a part of a parameter's name in Optuna."""
        parts = (f"{name}={','.join(map(in_toml, values))}" for name, values in self.only_if.items())
        return "; ".join(parts).replace("'", "") or "otherwise"


class RangeCase(Range, _OnlyIf):
    """A range of a parameter under a condition."""


class ChoicesCase(Choices, _OnlyIf):
    """Choices of a parameter under a condition."""


_Case = Annotated[
    Annotated[RangeCase, Tag("RangeCase")] | Annotated[ChoicesCase, Tag("ChoicesCase")],
    Discriminator(lambda value: f"{_domain_class(value)}".removesuffix("Case") + "Case"),
]


class Cases(_Table):
    """What a parameter can be beside values of others; of several cases that hold, the first."""

    cases: list[_Case] = Field(min_length=1)

    def at(self, settings: Mapping[str, Value]) -> RangeCase | ChoicesCase:
        """The case that holds beside these settings; what is missing there has its model's default."""
        known = known_beside(settings, {name for each in self.cases for name in each.only_if})
        held = (each for each in self.cases if all(known[name] in values for name, values in each.only_if.items()))
        return next(held, self.cases[-1])

    def __str__(self) -> str:
        return "; ".join(f"{each} ({each.condition})" for each in self.cases)


def _as_table(value: Any) -> Any:
    """Cases as they stand in a file, a list of tables, as the table that they are kept as."""
    return {"cases": value} if isinstance(value, list) else value


Domain = Annotated[
    Annotated[Range, Tag("Range")]
    | Annotated[Choices, Tag("Choices")]
    | Annotated[Cases, BeforeValidator(_as_table), Tag("Cases")],
    Discriminator(_domain_class),
]


class _Settings(_Table):
    """A key's description begins with the names for which the key does something."""

    name: Any

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse a key that was changed and would do nothing."""
        described = {key: field.description or "" for key, field in type(self).model_fields.items()}
        used = [key for key, words in described.items() if self.name in words.partition(":")[0].split(", ")]
        for key, field in type(self).model_fields.items():
            if key not in ("name", *used) and getattr(self, key) != field.default:
                raise ValueError(f"{key} does nothing for {self.name!r}; it takes {listed(used) or 'no other key'}")
        return self


class SamplerSettings(_Settings):
    """How trials are chosen: `tpe` (Optuna's default), `random`, `qmc` (a quasi-random sequence), `grid`, or `given`.

    `grid` is each point of the space once, in an order shuffled by the sweep's seed; `given` the sweep's own points and
    no others. `auto` comes with the sweep's strategy of this name, as it does for the pruner.
    """

    name: Literal["tpe", "random", "qmc", "grid", "given", "auto"] = "tpe"
    startup_trials: int = Field(default=10, ge=0, description="tpe: random trials before the model is used")


class PrunerSettings(_Settings):
    """When weak trials are stopped. Steps are epochs, or tenths of a trial's own schedule where epochs are searched."""

    name: Literal["none", "median", "percentile", "asha", "hyperband", "auto"] = "median"
    startup_trials: int = Field(default=5, ge=0, description="median, percentile: complete trials before any is pruned")
    warmup_steps: int = Field(default=0, ge=0, description="median, percentile: steps before a trial may be pruned")
    percentile: float = Field(default=25.0, gt=0, le=100, description="percentile: the best share that is kept, in %")
    min_steps: int = Field(default=1, ge=1, description="asha, hyperband: steps before the first decision")
    reduction_factor: int = Field(default=3, ge=2, description="asha, hyperband: one in so many goes on")


class _WithParameters(_Table):
    """A table that has values of parameters beside its own keys."""

    model_config = ConfigDict(extra="allow")

    def params(self) -> dict[str, Value]:
        """The values by parameter."""
        return dict(self.__pydantic_extra__ or {})


class Preview(_WithParameters):
    """What `--preview` changes: the number of trials, and parameters fixed at other values."""

    trials: int = Field(default=8, ge=1)


# What shortens a given point. Both are then in the point, so that a study can hold whole and shortened runs.
SHORTENS = {"epochs": "epochs", "train_images": "training images"}


class Point(_WithParameters):
    """A point of the space to try first. `label` says where it comes from, such as a report's run.

    Parameters of the space that it leaves out are sampled. The claim is what somebody else says of this point. It stays
    in the sweep file: no trial ever gets it as a value.
    """

    label: str = ""
    claimed: Number | None = Field(default=None, description="test accuracy, in percent")
    claimed_seconds: Number | None = Field(default=None, description="training time")
    note: str = Field(default="", description="what its source says besides, or leaves open")
    whole: dict[str, int] = Field(default_factory=dict, description="what a shortened point had before")

    @property
    def shortened(self) -> str:
        """In what the point was cut short, as in "3 of 30 epochs"; empty where it was not."""
        has, whole = self.params(), {name: f"{count:,}" if count else "all" for name, count in self.whole.items()}
        return ", ".join(f"{has[name]:,} of {whole[name]} {noun}" for name, noun in SHORTENS.items() if name in whole)


class ClaimedEnsemble(_Table):
    """A claim about the averaged probabilities of several given points, by their labels."""

    label: str = Field(min_length=1)
    members: list[str] = Field(min_length=2)
    claimed: Number | None = None
    note: str = ""


def with_name(value: Any) -> Any:
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
    confirm: Annotated[tuple[int, int] | None, BeforeValidator(_check_confirm)] = Field(
        default=None, description="so many of the best trials are repeated under so many fresh seeds each"
    )
    strategy: Literal["auto", "optuna"] = Field(
        default="optuna", description="auto: sampler and pruner are auto; optuna: they are of those that Optuna has"
    )
    sampler: Annotated[SamplerSettings, BeforeValidator(with_name)] = SamplerSettings()
    pruner: Annotated[PrunerSettings, BeforeValidator(with_name)] = PrunerSettings()
    stop: Literal["never", "auto"] = Field(default="never", description="auto: when more search is not worth it")
    fixed: dict[str, Plain] = Field(default_factory=dict)
    space: dict[str, Domain] = Field(default_factory=dict)
    enqueue: list[Point] = Field(default_factory=list)
    ensemble: list[ClaimedEnsemble] = Field(default_factory=list)
    preview: Preview = Preview()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Strategy auto brings its sampler and its pruner; the metric is kept with what else all trials share."""
        fixed = raw.get("fixed", {})
        if isinstance(metric := raw.get("metric"), str) and "metric" not in (fixed if isinstance(fixed, dict) else ()):
            named = {**fixed, "metric": metric} if isinstance(fixed, dict) else fixed  # which is refused by itself
            raw = {key: value for key, value in raw.items() if key != "metric"} | {"fixed": named}
        return {"sampler": "auto", "pruner": "auto"} | raw if raw.get("strategy") == "auto" else raw

    @property
    def given(self) -> bool:
        """Whether its own points are all that is run."""
        return self.sampler.name == "given"

    @property
    def listed(self) -> bool:
        """Whether all its points are known before the first one is trained."""
        return self.sampler.name in ("given", "grid")

    @property
    def size(self) -> int:
        """How many trials it has."""
        return len(self.enqueue) if self.given else self.trials

    @property
    def metric(self) -> str:
        """What its trials are chosen by: a name in `curve.METRICS`."""
        return str(self.fixed.get("metric", PARAMETERS["metric"].default))

    @property
    def image_size(self) -> int:
        """The pixels of a side of its images."""
        return int(self.fixed.get("image_size", PARAMETERS["image_size"].default))

    def identity(self) -> dict[str, Any]:
        """What must not change under a study: everything that decides what its numbers mean."""
        return self.model_dump(mode="json", include={"seed", "strategy", "sampler", "pruner", "fixed", "space"})


# What decides whether others apply is suggested first. The first three come in the order of the file, as they always
# did: another order would be another sequence of random numbers.
_FIRST = ("model", "optimizer", "batch_norm")
DECIDING = frozenset(other for parameter in PARAMETERS.values() for other in parameter.only_if)


def suggested_order(sweep: Sweep) -> list[str]:
    """The parameters of the space in the order in which they get their values."""

    def place(name: str) -> tuple[bool, ...]:
        domain = sweep.space[name]
        lists = isinstance(domain, Choices) and any(PARAMETERS[name].entries(choice) for choice in domain.choices)
        counts = name in BY_LAYER and lists  # how many layers there are
        return name not in _FIRST, not counts, name not in DECIDING, isinstance(domain, Cases)

    return sorted(sweep.space, key=place)


def domain_beside(domain: Range | Choices | Cases, settings: Mapping[str, Value]) -> Range | Choices:
    """What a parameter can be beside these settings."""
    return domain.at(settings) if isinstance(domain, Cases) else domain


def parts_of(domain: Range | Choices | Cases) -> Sequence[Range | Choices]:
    """All that a parameter can be, whatever the others are."""
    return domain.cases if isinstance(domain, Cases) else [domain]


def is_whole(name: str, domain: Range | Choices) -> bool:
    """Whether a parameter takes whole numbers alone: that of a user's own network where both its ends are."""
    ends = isinstance(domain, Range) and type(domain.low) is type(domain.high) is int
    return PARAMETERS[name].kind is int or (name.startswith(OWN) and ends)


def values_of(sweep: Sweep, name: str) -> list[Value]:
    """The values that a parameter can take by [fixed] and [space]; of a range its two ends."""
    domain = sweep.space.get(name)
    if domain is None:
        return [sweep.fixed.get(name, PARAMETERS[name].default)]
    ends = (each.choices if isinstance(each, Choices) else [each.low, each.high] for each in parts_of(domain))
    return [value for values in ends for value in values]


def trained_values(sweep: Sweep, name: str) -> list[Value]:
    """The values that a parameter takes in the sweep's trials: those of given points alone, else `values_of`."""
    if not sweep.given:
        return values_of(sweep, name)
    usual = sweep.fixed.get(name, PARAMETERS[name].default)
    return [point.params().get(name, usual) for point in sweep.enqueue]


def contains(domain: Range | Choices | Cases, value: Value) -> bool:
    """Whether `value` lies in `domain`, of cases in any."""
    if isinstance(domain, Cases):
        return any(contains(each, value) for each in domain.cases)
    if isinstance(domain, Choices):
        return value in domain.choices
    if isinstance(value, str) or not domain.low <= value <= domain.high:
        return False
    if domain.base2:
        return _is_power_of_two(value)
    return domain.step is None or (value - domain.low) % domain.step == 0


def _is_power_of_two(value: float) -> bool:
    return value == int(value) and value >= 1 and int(value) & (int(value) - 1) == 0


def listed(words: Iterable[Any]) -> str:
    return ", ".join(str(word) for word in words)


def in_toml(value: Any) -> str:
    """A value as TOML writes it, nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
