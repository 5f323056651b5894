"""What a parameter may be. Standard library only."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """What a parameter of a trial may be."""

    kind: type
    default: Value
    words: str = ""  # what it is
    low: float = 0  # inclusive, as is `high`, unless `high_is_open`
    high: float | None = None
    choices: tuple[Value, ...] = ()
    high_is_open: bool = False
    pattern: str = ""  # of further texts besides `choices`
    pattern_words: str = ""  # what they are
    listed: bool = False  # it also takes a list, which is kept as a text such as "32,64"
    each: str = "layer"  # what a list has a value for
    # It does something only beside one of these values of other parameters.
    only_if: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def accepted(self) -> str:
        """The accepted values, in words."""
        return self._one() + (f", or a list of these, one a {self.each}" if self.listed else "")

    def _one(self) -> str:
        if self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
            return f"{words}, or {self.pattern_words}" if self.pattern else words
        if self.kind is bool:
            return "true or false"
        noun = "a whole number" if self.kind is int else "a number"
        if self.high is None:
            return f"{noun} of at least {self.low:g}"
        return f"{noun} from {self.low:g} to {'below ' if self.high_is_open else ''}{self.high:g}"

    def check(self, value: Any) -> Value:
        """Return `value` in the parameter's own type, or raise ValueError with what would be accepted."""
        if self.listed and (entries := self.entries(value)):
            # Where there is a pattern, the choices are words for a whole list.
            entry_of = replace(self, listed=False, choices=() if self.pattern else self.choices)
            return ",".join(str(entry_of.check(entry)) for entry in entries)
        if not (self._takes_text(value) if self.kind is str else self._takes_number(value)):
            raise ValueError(f"{value!r} is not accepted; it takes {self.accepted()}")
        return self.kind(value)  # type: ignore[no-any-return]

    def entries(self, value: Any) -> list[Any]:
        """The values of a list, also of one that is kept as a text; none of anything else."""
        if not self.listed:
            return []
        if isinstance(value, (list, tuple)):
            return [str(part) for part in value] if self.kind is str else list(value)
        if not isinstance(value, str) or (self.kind is str and "," not in value):
            return []
        try:
            return [part if self.kind is str else self.kind(part) for part in value.split(",")]
        except ValueError:
            return []

    def _takes_text(self, value: Any) -> bool:
        matches = self.pattern and isinstance(value, str) and re.fullmatch(self.pattern, value)
        return value in self.choices or bool(matches)

    def _takes_number(self, value: Any) -> bool:
        """Whether a number or a truth value fits: of the right kind, finite, and in the range."""
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, (int, float)) or not self.low <= value < math.inf:
            return False
        if self.choices and value not in self.choices:
            return False
        # The range first: an integer beyond the largest float has no float to convert to.
        too_high = self.high is not None and (value >= self.high if self.high_is_open else value > self.high)
        return not too_high and (self.kind is float or value == int(value))
