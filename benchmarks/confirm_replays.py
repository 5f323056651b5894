"""How often is the winner of a search the best of its trials, and what does it come to on new images?

Asks the product's own rules (`study/winner.py`, `study/selection.py`) about searches of a table of real trainings
(`benchmarks/curves/README.md`). A search is 40 random settings with one seed each.

1. `winner`: how often the trial of the best value is not the setting of the best true mean, without and with
   `--confirm 5,3`. The table has three seeds of some settings alone, so here the seeds are **drawn**: a setting's true
   mean is its mean in the table, and a seed's deviation from it is normal, with the noise of the table.
2. `held_out`: the same without anything drawn. Of settings with three seeds one is the search's, one the fresh seed of
   `--confirm 5,1`, and the third says how good the choice is: it had no part in it.
3. `test`: what is said to be expected of the chosen trial on new images, against its test accuracy. All searches share
   one set of validation images and one test set, whose luck does not average out.
4. `halves`: the same with random halves of the validation images, one to choose by and one as the new images, so that
   images are drawn anew each time.

    python benchmarks/confirm_replays.py --table benchmarks/curves/joint.json.gz --replays 500
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import noise, read
from cifar_sweep.replay.table import Table
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.selection import Expected, judged, unpacked
from cifar_sweep.study.winner import Candidate, confirmed, seeds_due

TRIALS = 40
CONFIRM = (5, 3)


def trial(number: int, value: float, **attributes: Any) -> TrialRecord:
    kept: dict[str, Any] = {"params": {}, "distributions": {}, "system_attrs": {}, "intermediate_values": {}}
    moments: dict[str, Any] = {"datetime_start": None, "datetime_complete": None}
    state = TrialState.COMPLETE
    return TrialRecord(
        FrozenTrial(number=number, state=state, value=value, user_attrs=attributes, trial_id=number, **kept, **moments)
    )


def confirm(values: Sequence[float], seed_of: Callable[[int], float], asked: tuple[int, int]) -> list[Candidate]:
    """The candidates of a search that came to these values, the winner first; `seed_of` is a fresh seed of a trial."""
    trials = [trial(k, value) for k, value in enumerate(values)]
    while due := seeds_due(trials, asked):
        trials += [
            trial(len(trials) + k, seed_of(number), confirms=number, confirm=asked) for k, number in enumerate(due)
        ]
    return confirmed(trials)


def share(found: Sequence[bool]) -> list[float]:
    """A share, and its standard error."""
    mean = statistics.fmean(found)
    return [mean, (mean * (1 - mean) / len(found)) ** 0.5]


def mean(found: Sequence[float]) -> list[float]:
    """A mean, and its standard error."""
    return [statistics.fmean(found), statistics.stdev(found) / len(found) ** 0.5]


def winners(table: Table, replays: int, generator: np.random.Generator) -> dict[str, Any]:
    missed: dict[str, list[bool]] = {"single": [], "confirmed": []}
    short: dict[str, list[float]] = {"single": [], "confirmed": []}
    sure, right, seeds, among, luck = [], [], [], [], noise(table)
    for _ in range(replays):
        truth = generator.choice(np.array(table.true), TRIALS, replace=False)
        values = truth + luck * generator.standard_normal(TRIALS)

        def seed_of(k: int, truth: Any = truth) -> float:
            return float(truth[k] + luck * generator.standard_normal())

        found = confirm(values.tolist(), seed_of, CONFIRM)
        choices = {"single": int(values.argmax()), "confirmed": found[0].number}
        for name, choice in choices.items():
            missed[name].append(choice != truth.argmax())
            short[name].append(float(truth.max() - truth[choice]))
        sure.append(found[0].chance or 0.0)
        right.append(found[0].number == max(found, key=lambda each: truth[each.number]).number)
        among.append(int(truth.argmax()) in [each.number for each in found])
        seeds.append(float(sum(len(each.seeds) for each in found)))
    return {
        "not_the_best": {name: share(each) for name, each in missed.items()},
        "points_short": {name: mean([100 * value for value in each]) for name, each in short.items()},
        "best_is_among_the_candidates": share(among),
        "said_to_be_best_of_candidates": mean(sure),
        "is_best_of_candidates": share(right),
        "fresh_seeds": mean(seeds),
    }


def held_out(table: Table, replays: int, generator: np.random.Generator) -> dict[str, Any]:
    three = np.array([list(map(max, curves)) for curves in table.curves if len(curves) == 3])
    single, chosen = [], []
    for _ in range(replays):
        rows = generator.permuted(generator.choice(three, min(TRIALS, len(three)), replace=False), axis=1)
        values, fresh, judge = rows.T
        found = confirm(values.tolist(), lambda k, fresh=fresh: fresh[k], (CONFIRM[0], 1))
        single.append(100 * judge[values.argmax()])
        chosen.append(100 * judge[found[0].number])
    gain = [one - other for one, other in zip(chosen, single, strict=True)]
    return {"settings": len(three), "single": mean(single), "confirmed": mean(chosen), "gain": mean(gain)}


def summed(expectations: Sequence[Expected], truths: Sequence[float]) -> dict[str, Any]:
    both = list(zip(expectations, truths, strict=True))
    return {
        "shown_too_high": mean([100 * (found.accuracy + found.optimism - truth) for found, truth in both]),
        "expected_too_high": mean([100 * (found.accuracy - truth) for found, truth in both]),
        "expected_off_by": mean([100 * abs(found.accuracy - truth) for found, truth in both]),
        "covered": share([found.low <= truth <= found.high for found, truth in both]),
    }


def _best(accuracies: Any) -> Any:
    return accuracies.argmax(axis=1)


def curse(table: Table, replays: int, generator: np.random.Generator, test_images: int) -> dict[str, Any]:
    """What is expected of the best of 40, against its test accuracy, and against other validation images."""
    bits = [
        [unpacked({"bits": row["correct"], "images": None}).astype(np.float32) for row in table.rows[k]]
        for k in range(len(table.settings))
    ]
    count = len(bits[0][0])  # a multiple of 8: the table does not say where its last byte ends
    tested: tuple[list[Expected], list[float]] = [], []
    halved: tuple[list[Expected], list[float]] = [], []
    for _ in range(replays):
        settings = generator.choice(len(bits), TRIALS, replace=False)
        seeds = [int(generator.integers(len(bits[k]))) for k in settings]
        correct = np.array([bits[k][seed] for k, seed in zip(settings, seeds, strict=True)])
        best = int(correct.mean(axis=1).argmax())
        tested[0].append(judged(correct, _best, new_images=test_images))
        tested[1].append(table.rows[settings[best]][seeds[best]]["test_accuracy"])
        order = generator.permutation(count)
        seen, new = correct[:, order[: count // 2]], correct[:, order[count // 2 :]]
        halved[0].append(judged(seen, _best, new_images=new.shape[1]))
        halved[1].append(float(new[int(seen.mean(axis=1).argmax())].mean()))
    return {"validation_images": count, "test": summed(*tested), "halves": summed(*halved)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--replays", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-images", type=int, default=10_000, help="of the data that the table was trained on")
    options = parser.parse_args()
    table, generator = read(options.table), np.random.default_rng(options.seed)
    found = {
        "table": table.name,
        "replays": options.replays,
        "noise": 100 * noise(table),
        "winner": winners(table, options.replays, generator),
        "held_out": held_out(table, options.replays, generator),
        "curse": curse(table, options.replays, generator, options.test_images),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
