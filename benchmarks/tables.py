"""Tables of real curves as files, and how long an epoch takes; what replays are compared by.

`cifar_sweep/replay/table.py` has the rules of a search of a table.
"""

import gzip
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cifar_sweep.replay.table import Table

NEAR = 0.10  # settings no further below the best are those that the choice is between: their noise counts
SPEEDS = Path(__file__).parent / "curves" / "speeds.json"


@cache
def read(path: Path) -> Table:
    return Table(json.loads(gzip.decompress(path.read_bytes())))


@dataclass
class Speeds:
    """How long an epoch takes, relative to one trial alone at batch size 64: by batch size and group size."""

    relative: Mapping[int, Mapping[int, float]]

    @classmethod
    def read(cls, path: Path = SPEEDS) -> "Speeds":
        stored = json.loads(path.read_text())["seconds_of_an_epoch"]
        return cls({int(size): {int(k): float(s) for k, s in row.items()} for size, row in stored.items()})

    def epoch(self, batch_size: int, members: int) -> float:
        """Seconds of an epoch of the whole group; between what was measured linear in the logarithms."""
        rows = [np.interp(math.log2(members), np.log2(list(row)), list(row.values())) for row in self.relative.values()]
        return float(np.interp(math.log2(batch_size), np.log2(list(self.relative)), rows))


def noise(table: Table) -> float:
    """One seed's standard deviation, pooled over the settings near the best that have several; 0 without any."""
    near = [c for c, true in zip(table.curves, table.true, strict=True) if len(c) > 1 and true > table.best - NEAR]
    return math.sqrt(statistics.mean(statistics.variance(map(max, curves)) for curves in near)) if near else 0.0


def batch_size(table: Table, setting: int) -> int:
    return int((table.fixed | table.settings[setting]).get("batch_size", 64))


def facts(table: Table, speeds: Speeds) -> dict[str, Any]:
    """What replays are compared by, once the table is no longer at hand; `whole` is the mean of a whole trial."""
    seconds = [epochs * speeds.epoch(batch_size(table, k), 1) for k, epochs in enumerate(table.epochs)]
    return {
        "name": table.name,
        "best": table.best,
        "noise": noise(table),
        "chance": 1 / table.classes,
        "whole_epochs": statistics.mean(table.epochs),
        "whole_seconds": statistics.mean(seconds),
    }
