"""A search in so many hours: what a study stores of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIME_OVER = "the time was over"


@dataclass(frozen=True)
class Hours:
    """Until when a study may go on. Its own sweep is cut to that."""

    hours: float  # what was asked for
    asked: Mapping[str, Any]  # the identity of the sweep before it was cut
    reserve: float = 0.0  # seconds at the end that are left to the confirmation
    deadline: float | None = None  # in seconds since the epoch; None until a worker begins
