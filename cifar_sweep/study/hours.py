"""A search in so many hours: what a study stores of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIME_OVER = "the time was over"


@dataclass(frozen=True)
class Hours:
    """Until when a study may go on. Its own sweep is cut to that.

    Attributes:
        hours: what was asked for.
        asked: the identity of the sweep before it was cut.
        reserve: seconds at the end that are left to the confirmation.
        deadline: in seconds since the epoch; None until a worker begins.
    """

    hours: float
    asked: Mapping[str, Any]
    reserve: float = 0.0
    deadline: float | None = None
