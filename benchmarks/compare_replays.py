"""Compare replays of one table: how soon each strategy's choice is good, and how far it is from the best until then.

    python benchmarks/compare_replays.py joint-random.json joint-optuna_gp.json ... [--ours NAME] [--seconds]

The files are those of `benchmarks/peers/replay_peers.py`. What is printed is a table in Markdown, of

- the epochs until the choice's true mean is within one noise, 0.5 points and 2 points of the best: the median and the
  quartiles, by rank; "never" where a replay ended before that;
- the mean regret, with its standard error: how many points the choice is below the best after the epochs of so many
  whole trials. Before there is a choice it is that of chance. A replay that ended at the best keeps its choice;
- with `--ours` the ratio of medians, ours over the strategy's, with a 95 % bootstrap interval. Of a replay that ended
  too early nothing is known but that it needs more than it had, so that a ratio may have one bound only, or none.

With `--seconds` all is by simulated seconds, and a whole trial's are its mean seconds in the table.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EQUAL = 1e-9  # true means no further apart are the same
WHOLE_TRIALS = (5, 10, 20, 40)
RESAMPLES = 2000
QUARTILES = (0.25, 0.5, 0.75)

Bounds = tuple[np.ndarray, np.ndarray]  # what is known of numbers: each is at least, and at most


@dataclass(frozen=True)
class Strategy:
    """A strategy's replays of a table; `by` is the unit, epochs or seconds."""

    table: dict[str, Any]
    replays: list[dict[str, Any]]
    by: str

    @property
    def place(self) -> int:
        """Of the unit in an event."""
        return {"epochs": 0, "seconds": 1}[self.by]

    def length(self, replay: dict[str, Any]) -> float:
        """How long it went on."""
        return replay["spent"] if self.by == "epochs" else replay["seconds"]

    def within(self, distance: float) -> Bounds:
        """When each replay's choice was so near to the best: at least and at most; no limit where it ended before."""
        least, most = [], []
        for replay in self.replays:
            near = (event for event in replay["events"] if self.table["best"] - event[2] <= distance + EQUAL)
            reached = next(near, None)
            least.append(self.length(replay) if reached is None else reached[self.place])
            most.append(math.inf if reached is None else reached[self.place])
        return np.array(least, float), np.array(most, float)

    def regret(self, budget: float) -> np.ndarray:
        """Each replay's points below the best then; not a number where it ended before, and not at the best."""
        regrets = []
        for replay in self.replays:
            means = [event[2] for event in replay["events"] if event[self.place] <= budget + EQUAL]
            regret = self.table["best"] - (means[-1] if means else self.table["chance"])
            is_over = self.length(replay) < budget - EQUAL and regret > EQUAL
            regrets.append(math.nan if is_over else 100 * regret)
        return np.array(regrets)


def read(paths: Sequence[Path], *, by: str) -> dict[str, Strategy]:
    """The strategies of all files; several files of one strategy are one if its settings are the same."""
    strategies: dict[str, Strategy] = {}
    table: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for path in paths:
        stored = json.loads(path.read_text())
        name = stored["strategy"]
        table = table or stored["table"]
        if stored["table"] != table:
            raise SystemExit(f"{path} is of another table than {paths[0]}.")
        if settings.setdefault(name, stored["settings"]) != stored["settings"]:
            raise SystemExit(f"{path} has other settings of {name} than the file before it.")
        if by == "seconds" and not all(replay.get("seconds") for replay in stored["replays"]):
            raise SystemExit(f"{path} has no simulated seconds.")
        known = strategies.setdefault(name, Strategy(table, [], by))
        if {replay["seed"] for replay in known.replays} & {replay["seed"] for replay in stored["replays"]}:
            raise SystemExit(f"{path} has seeds of {name} that the file before it has, too.")
        known.replays.extend(stored["replays"])
    return strategies


def quantile(values: np.ndarray, share: float) -> np.ndarray:
    """By rank: never between a number and infinity. Of each row."""
    return np.quantile(values, share, method="inverted_cdf", axis=-1)


def ratio(ours: Bounds, theirs: Bounds) -> str:
    """Of the medians, and its 95 % interval."""

    def medians(bounds: Bounds, generator: np.random.Generator | None) -> Bounds:
        least, most = bounds
        if generator is None:
            return quantile(least, 0.5), quantile(most, 0.5)
        drawn = generator.integers(len(least), size=(RESAMPLES, len(least)))
        return quantile(least[drawn], 0.5), quantile(most[drawn], 0.5)

    def between(generator: np.random.Generator | None) -> Bounds:
        (least, most), (their_least, their_most) = medians(ours, generator), medians(theirs, generator)
        return least / their_most, most / their_least  # a known time is never 0, and only a time at most is infinite

    (least, most), (lows, highs) = between(None), between(np.random.default_rng(0))
    bounds = f"{number(quantile(lows, 0.025))} to {number(quantile(highs, 0.975))}"
    if least == most:
        return f"{number(least)} ({bounds})"
    if most < math.inf:
        return f"< {number(most)} ({bounds})"
    return f"> {number(least)} ({bounds})" if least > 0 else "unknown"


def number(value: Any) -> str:
    return "∞" if value == math.inf else f"{value:.2f}"


def spread(times: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = ("never" if at == math.inf else f"{at:.0f}" for at in (quantile(times, q) for q in QUARTILES))
    return f"{middle} ({low} to {high})"


def mean(regrets: np.ndarray) -> str:
    if np.isnan(regrets).any():
        return "unknown"
    if len(regrets) == 1:
        return f"{regrets[0]:.2f}"
    return f"{regrets.mean():.2f} ± {regrets.std(ddof=1) / math.sqrt(len(regrets)):.2f}"


def compare(strategies: dict[str, Strategy], *, ours: str | None = None) -> str:
    """The table in Markdown, in the order of the files."""
    first = next(iter(strategies.values()))
    table, by = first.table, first.by
    distances = {f"one noise ({100 * table['noise']:.2f})": table["noise"], "0.5 points": 0.005, "2 points": 0.02}
    header = ["strategy", "n", *(f"{by} to {words}" for words in distances)]
    header += [f"regret after {count} trials" for count in WHOLE_TRIALS]
    if ours is not None:
        header += [f"ratio, {words}" for words in distances]
    lines = [header, ["---"] * len(header)]
    for name, strategy in strategies.items():
        times = [strategy.within(distance) for distance in distances.values()]
        row = [name, str(len(strategy.replays)), *(spread(most) for _, most in times)]
        row += [mean(strategy.regret(count * table[f"whole_{by}"])) for count in WHOLE_TRIALS]
        if ours is not None:
            pairs = zip(map(strategies[ours].within, distances.values()), times, strict=True)
            row += [ratio(mine, theirs) if name != ours else "1" for mine, theirs in pairs]
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--ours", help="the strategy that the others are compared with")
    parser.add_argument("--seconds", action="store_true", help="by simulated seconds instead of epochs")
    options = parser.parse_args()
    strategies = read(options.files, by="seconds" if options.seconds else "epochs")
    if options.ours is not None and options.ours not in strategies:
        raise SystemExit(f"No file has replays of {options.ours}; there are {', '.join(strategies)}.")
    print(compare(strategies, ours=options.ours))


if __name__ == "__main__":
    main()
