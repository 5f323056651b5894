"""Which trial is the best: by its metric, or, where the search's best were confirmed, by the mean of fresh seeds.

A trial of a search is chosen because its value is high, and its luck is part of that. So where it is repeated under
fresh seeds, its own value does not count. All that is said of a confirmation is computed here, from the trials alone.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cifar_sweep.curve import METRICS, Metric
from cifar_sweep.study.record import TrialRecord
from cifar_sweep.words import counted

FIRST_SEEDS = 2  # of each candidate before any is dropped: with fewer, nothing says how large the noise is
HOPELESS = 0.03  # a candidate whose chance to be the best one is smaller gets no further seeds
DRAWS = 20_000


@dataclass(frozen=True)
class Candidate:
    """A trial of the search that is confirmed, and what its fresh seeds came to."""

    number: int  # of the search's trial
    seeds: Sequence[int]  # the trials that repeat it, by number
    accuracies: Sequence[float] = ()  # of those that are complete: their values, whatever the metric
    finished: bool = True  # whether all of them have ended
    steady: bool = True  # whether none of them diverged
    chance: float | None = None  # to be the best of all candidates; None where nothing says how large the noise is
    mean: float = field(init=False)
    deviation: float | None = field(init=False)  # of one seed

    def __post_init__(self) -> None:
        found = self.accuracies
        object.__setattr__(self, "mean", statistics.fmean(found) if found else 0.0)
        object.__setattr__(self, "deviation", statistics.stdev(found) if len(found) > 1 else None)

    @property
    def may_win(self) -> bool:
        """Whether it may still be the best one."""
        return self.steady and (self.chance is None or self.chance >= HOPELESS)


def fresh_seeds(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that confirm others. Where one failed, another takes its place."""
    return [trial for trial in trials if trial.confirms is not None and trial.state != "failed"]


def _candidates(numbers: Iterable[int], trials: Sequence[TrialRecord], *, first: int | None = None) -> list[Candidate]:
    """These trials as candidates, the best mean first, with their `first` seeds alone where that is given."""
    found, score = [], _metric_of(trials).score
    for number in numbers:
        seeds = [trial for trial in trials if trial.confirms == number][:first]
        accuracies = [float(seed.value or 0.0) for seed in seeds if seed.state == "complete"]
        finished = all(seed.is_finished for seed in seeds)
        steady = not any(seed.diverged for seed in seeds)
        found.append(Candidate(number, [seed.number for seed in seeds], accuracies, finished, steady))
    chances = chances_to_be_best([[*map(score, each.accuracies)] if each.steady else () for each in found])
    judged = [replace(each, chance=chance) for each, chance in zip(found, chances, strict=True)]
    return sorted(judged, key=lambda each: (not each.accuracies, -score(each.mean), each.number))


def _metric_of(trials: Iterable[TrialRecord]) -> Metric:
    """What a study's trials are chosen by."""
    return next((trial.metric for trial in trials if trial.config), METRICS["accuracy"])


def chances_to_be_best(samples: Sequence[Sequence[float]]) -> list[float | None]:
    """The chance of each group of samples to have the highest true mean; None where nothing says how large noise is.

    Flat priors on the means and on the logarithm of the deviation, which all groups share, give a multivariate t
    distribution around the groups' means (Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, section 3.2); the
    chance to be the best is the share of its draws in which a group is the highest (Scott, A modern Bayesian look at
    the multi-armed bandit, 2010). A group without samples has no chance.
    """
    there = [k for k, group in enumerate(samples) if group]
    freedom = sum(len(samples[k]) - 1 for k in there)
    squares = math.fsum((value - statistics.fmean(samples[k])) ** 2 for k in there for value in samples[k])
    chances: list[float | None] = [None] * len(samples)
    if not squares:
        return chances
    generator = np.random.default_rng(0)
    means, counts = (np.array([call(samples[k]) for k in there]) for call in (statistics.fmean, len))
    deviations = np.sqrt(squares / generator.chisquare(freedom, (DRAWS, 1)))
    draws = means + deviations / np.sqrt(counts) * generator.standard_normal((DRAWS, len(there)))
    for k, wins in zip(there, np.bincount(draws.argmax(axis=1), minlength=len(there)), strict=True):
        chances[k] = float(wins) / DRAWS
    return chances


def seeds_due(trials: Sequence[TrialRecord], confirm: tuple[int, int]) -> list[int]:
    """The trials of a finished search that get one more fresh seed now, one so often as it gets seeds.

    All candidates get `FIRST_SEEDS`, and those that may still win get twice as many, and so on. Who may is judged by
    the seeds of the rounds before, when all of them have ended: so the same trials say the same at any moment.
    """
    most, seeds = confirm
    there, alive = fresh_seeds(trials), _chosen(trials, most)
    known = 0
    while alive and known < seeds:
        target = min(2 * known or FIRST_SEEDS, seeds)
        if known:
            judged = _candidates(_chosen(trials, most), there, first=known)
            if not all(each.finished for each in judged):
                return []
            alive = [each.number for each in judged if each.may_win and each.number in alive]
        missing = {number: target - sum(trial.confirms == number for trial in there) for number in alive}
        if due := [number for number in alive for _ in range(missing[number])]:
            return due
        known = target
    return []


def _chosen(trials: Iterable[TrialRecord], most: int) -> list[int]:
    """The best trials of the search, by number; those of another study, which it began with, are not among them."""
    own = (trial for trial in trials if trial.confirms is None and not trial.earlier)
    return [trial.number for trial in _by_value(own)[:most]]


def confirmed(trials: Sequence[TrialRecord]) -> list[Candidate]:
    """The candidates of a confirmation that is over, the winner first; none where there is no such thing.

    It is no longer over when the search has gone on and found trials that would have got fresh seeds, too. Of trials
    without the cuts of a search, those win that there was time for: all others have seen less.
    """
    there = fresh_seeds(trials)
    confirm = there[-1].confirm if there else None
    if confirm is None:
        return []
    numbers, seeds = _chosen(trials, confirm[0]), confirm[1]
    if any(trial.uncut for trial in there):
        numbers = [number for number in numbers if any(trial.confirms == number for trial in there)]
        seeds = max(sum(trial.confirms == number for trial in there) for number in numbers) if numbers else 0
    elif seeds_due(trials, confirm):
        return []
    found = _candidates(numbers, there)
    found.sort(key=lambda each: (not each.steady, len(each.seeds) < seeds))  # who was dropped cannot win
    over = found and all(each.finished for each in found) and found[0].steady and found[0].accuracies
    return found if over else []


def _by_value(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, the best first, of equals the earlier one."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: (-trial.score, trial.number))


def ranked(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, the best first: fresh seeds of a confirmed winner, the search's trials, other fresh seeds.

    Each of these by their metric, of equals the earlier one first.
    """
    there = list(trials)
    winner = next((each.number for each in confirmed(there)), None)
    return sorted(_by_value(there), key=lambda trial: 1 if trial.confirms is None else 2 * (trial.confirms != winner))


def described(trials: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """A confirmation as plain data with its `text`: seeds so far, candidates once it is over; None where none is."""
    there, found = fresh_seeds(trials), confirmed(trials)
    if not there:
        return None
    done = sum(trial.is_finished for trial in there)
    plain = [{name: value for name, value in asdict(each).items() if name != "finished"} for each in found]
    words = f"being confirmed: {done} of {counted(len(there), 'fresh seed')} done"
    text = _text(found, _metric_of(trials), uncut=any(trial.uncut for trial in there)) if found else words
    return {"done": done, "begun": len(there), "candidates": plain, "text": text}


def _text(found: Sequence[Candidate], metric: Metric, *, uncut: bool) -> str:
    winner, *others = found
    seeds, sure = counted(len(winner.accuracies), "fresh seed"), ""
    spread = "" if winner.deviation is None else f" ± {metric.number(winner.deviation)}"
    if others and winner.chance is not None:
        sure = f", {100 * winner.chance:.0f} % sure to be the best of {len(found)}"
    dropped = [f"{each.number} after {len(each.seeds)}" for each in others if len(each.seeds) < len(winner.seeds)]
    lost = f"; dropped on the way: trial {', '.join(dropped)}" if dropped else ""
    mean = f"{metric.number(winner.mean)}{spread}{metric.unit}"
    named = "without the cuts of the search" if uncut else "is confirmed"
    return f"trial {winner.number} {named}: {mean} over {seeds}{sure}{lost}"
