"""The search's best trials again under fresh seeds: exact counts, clear losers dropped, the winner by mean."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean, variance
from typing import Any

import pytest

from cifar_sweep.curve import EpochResult
from cifar_sweep.errors import UsageError
from cifar_sweep.search.choice import Choice
from cifar_sweep.study.claim import Claim, Worker
from cifar_sweep.study.opening import open_or_resume
from cifar_sweep.study.owner import Owner
from cifar_sweep.study.storage import Storage
from cifar_sweep.study.study import SweepStudy
from cifar_sweep.study.winner import chances_to_be_best, confirmed
from cifar_sweep.sweep.parsing import parse
from cifar_sweep.sweep.sweep import Sweep

DATA = {"name": "pictures", "fingerprint": "abc", "classes": 10}
SPACE = {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "batch_size": {"low": 16, "high": 64, "base2": True}}
Make = Callable[..., SweepStudy]


def sweep(**tables: Any) -> Sweep:
    plain = {"name": "s", "trials": 6, "sampler": "random", "fixed": {"epochs": 3}, "space": SPACE}
    return parse(plain | tables, where="test")


@pytest.fixture
def make(storage: Storage, name: str) -> Make:
    return lambda **tables: open_or_resume(storage, name, sweep(**tables), data=DATA)


def worker() -> Worker:
    return Worker(Owner.current(), "cpu (test)", 1, "fp32")


def end(study: SweepStudy, claim: Claim, value: float) -> None:
    study.report(claim, [EpochResult(epoch, 1.0, 0.5, 1.0, value, 1e-3, 1.0).to_dict() for epoch in (1, 2, 3)])
    study.complete(claim, value)


def searched(study: SweepStudy, values: Sequence[float]) -> None:
    """Trial k of the search comes to `values[k]`."""
    for value in values:
        [claim] = study.claim(worker())
        end(study, claim, value)


def confirm(study: SweepStudy, values: dict[int, list[float]], **claiming: Any) -> Counter[int]:
    """Train all fresh seeds, each to the next of its trial's values. How many each trial got."""
    left, got = {number: list(each) for number, each in values.items()}, Counter[int]()
    while not study.finished():
        claims = study.claim(worker(), **{"size": lambda _: 8} | claiming)
        assert claims
        for claim in claims:
            number = claim.before.confirms
            assert number is not None
            got[number] += 1
            end(study, claim, left[number].pop(0))
    return got


VALUES = [0.50, 0.72, 0.60, 0.71, 0.70, 0.55]


def test_the_best_trials_are_repeated_under_seeds_of_their_own(make: Make) -> None:
    study = make(confirm=[2, 3])
    searched(study, VALUES)
    assert not study.finished()
    assert not study.settle()
    got = confirm(study, {1: [0.66, 0.68, 0.67], 3: [0.69, 0.67, 0.68]})
    assert got == {1: 3, 3: 3}
    assert study.settle()
    trials = study.trials()
    assert len(trials) == 6 + 6
    for fresh in trials[6:]:
        told = trials[fresh.confirms or 0]
        assert fresh.params == told.params
        assert fresh.config is not None
        assert told.config is not None
        assert fresh.config.shape == told.config.shape
    assert len({trial.seed for trial in trials}) == 12
    assert study.claim(worker()) == []


def test_the_winner_is_the_one_of_the_best_mean_and_the_first_value_does_not_count(make: Make) -> None:
    study = make(confirm=[2, 3])
    searched(study, VALUES)
    assert study.summary()["best"]["number"] == 1
    confirm(study, {1: [0.66, 0.68, 0.67], 3: [0.69, 0.67, 0.71]})
    winner, other = confirmed(study.trials())
    assert (winner.number, other.number) == (3, 1)
    assert winner.mean == pytest.approx(0.69)
    assert winner.deviation == pytest.approx(0.02)
    assert winner.chance is not None
    assert 0.8 < winner.chance < 0.99
    best = study.summary()["best"]
    assert best["value"] == 0.71, "of the winner's fresh seeds the best one"
    assert study.trials()[best["number"]].confirms == 3
    assert [trial.confirms for trial in study.ranked()] == [3] * 3 + [None] * 6 + [1] * 3
    assert "trial 3 is confirmed: 69.00 ± 2.00 % over 3 fresh seeds, 9" in study.summary()["confirmation"]["text"]


def test_the_search_is_best_until_the_confirmation_is_over(make: Make) -> None:
    study = make(confirm=[2, 2])
    searched(study, VALUES)
    claims = study.claim(worker(), size=lambda _: 1)
    end(study, claims[0], 0.9)
    assert study.summary()["best"]["number"] == 1
    assert study.summary()["confirmation"]["text"] == "being confirmed: 1 of 4 fresh seeds done"


def test_the_search_is_best_between_two_rounds_of_seeds(make: Make) -> None:
    study = make(confirm=[2, 3])
    searched(study, VALUES)
    while study.summary()["confirmation"] is None or study.summary()["confirmation"]["done"] < 4:
        for claim in study.claim(worker()):
            end(study, claim, 0.5 + claim.number / 100)
    assert study.summary()["best"]["number"] == 1
    assert not study.finished()


def test_clear_losers_are_dropped_after_two_seeds(make: Make) -> None:
    study = make(confirm=[3, 4])
    searched(study, VALUES)
    got = confirm(study, {1: [0.70, 0.71, 0.30, 0.30], 3: [0.71, 0.70, 0.30, 0.35], 4: [0.60, 0.61]})
    assert got == {1: 4, 3: 4, 4: 2}
    text = study.summary()["confirmation"]["text"]
    assert text.startswith("trial 3 is confirmed"), "a dropped one does not come back, however the others go on"
    assert text.endswith("dropped on the way: trial 4 after 2")


def test_a_winner_never_diverges(make: Make) -> None:
    study = make(confirm=[2, 2])
    searched(study, VALUES)
    claims = study.claim(worker(), size=lambda _: 8)
    claims += study.claim(worker(), size=lambda _: 8)
    for claim in claims:
        if claim is claims[0]:
            study.prune(claim, "diverged in epoch 2: the loss is no longer a finite number")
        else:
            end(study, claim, 0.9 if claim.before.confirms == claims[0].before.confirms else 0.6)
    assert study.finished()
    winner, unsteady = confirmed(study.trials())
    assert unsteady.number == claims[0].before.confirms
    assert winner.mean == pytest.approx(0.6)


def test_another_seed_takes_the_place_of_one_that_failed(make: Make) -> None:
    study = make(confirm=[1, 2])
    searched(study, VALUES)
    [first, second] = study.claim(worker(), size=lambda _: 8)
    study.fail(first, "lost")
    end(study, second, 0.6)
    assert not study.finished()
    [third] = study.claim(worker(), size=lambda _: 8)
    assert third.config.knobs.seed not in (first.config.knobs.seed, second.config.knobs.seed)
    end(study, third, 0.6)
    assert study.finished()


def test_a_finished_study_can_be_confirmed_later_and_keeps_its_budget(make: Make) -> None:
    study = make()
    searched(study, VALUES)
    assert study.settle()
    study = make(confirm=[2, 2])
    assert study.state == "open"
    confirm(study, {1: [0.6, 0.62], 3: [0.5, 0.52]})
    assert study.summary()["trials"]["complete"] == study.budget == 6
    assert study.summary()["confirmation"]["done"] == 4


def test_a_search_that_goes_on_is_confirmed_anew(make: Make) -> None:
    study = make(confirm=[2, 2])
    searched(study, VALUES)
    confirm(study, {1: [0.6, 0.62], 3: [0.5, 0.52]})
    study = make(trials=8, confirm=[2, 2])
    searched(study, [0.9, 0.2])
    assert study.summary()["best"]["value"] == 0.9, "the new trial was never confirmed, and may well be better"
    [latest] = [trial.number for trial in study.trials() if trial.value == 0.9]
    got = confirm(study, {latest: [0.8, 0.81]})
    assert got == {latest: 2}, "trial 1 has its fresh seeds"
    assert confirmed(study.trials())[0].number == latest
    assert study.summary()["trials"]["complete"] == 8


def test_fresh_seeds_are_shared_out_among_workers(make: Make) -> None:
    study = make(confirm=[4, 2], space={"learning_rate": SPACE["learning_rate"]})
    searched(study, VALUES)
    shares = [len(study.claim(worker(), size=lambda _: 16, workers=2)) for _ in range(2)]
    assert shares == [4, 2], "half of what is left, and never one at a time where all have one shape"


def test_fresh_seeds_are_not_pruned(make: Make) -> None:
    study = make(confirm=[1, 1], pruner={"name": "median", "startup_trials": 1}, fixed={"epochs": 3})
    searched(study, VALUES)
    [claim] = study.claim(worker())
    study.report(claim, [EpochResult(1, 1.0, 0.1, 1.0, 0.01, 1e-3, 1.0).to_dict()])
    study.report(claim, [EpochResult(epoch, 1.0, 0.1, 1.0, 0.01, 1e-3, 1.0).to_dict() for epoch in (1, 2)])
    assert claim.trial.should_prune(), "the pruner would"
    assert not study.should_prune(claim)


def test_fresh_seeds_of_strategy_auto_are_trained_to_their_end(make: Make) -> None:
    plain: dict[str, Any] = {"strategy": "auto", "sampler": "auto", "pruner": "auto", "fixed": {"epochs": 24}}
    study = make(trials=1, confirm=[1, 2], **plain)
    [claim] = study.claim(worker(), choose=lambda _: Choice(new=[{"learning_rate": 0.01, "batch_size": 32}]))
    end(study, claim, 0.5)
    claims = study.claim(worker(), size=lambda _: 4, choose=lambda _: Choice(new=[{"learning_rate": 0.1}]))
    assert [(claim.until, claim.config.knobs.learning_rate) for claim in claims] == [(24, 0.01)] * 2


@pytest.mark.parametrize("seed", range(4))
def test_however_trials_are_broken_off_the_count_is_exact(seed: int, make: Make) -> None:
    chance = random.Random(seed)
    study = make(confirm=[3, 3])
    searched(study, VALUES)
    held: list[list[Claim]] = []
    for _ in range(300):
        if study.finished():
            break
        if len(held) < 3 and (claims := study.claim(worker(), size=lambda _: 2)):
            held.append(claims)
        if held and chance.random() < 0.6:
            for claim in held.pop(chance.randrange(len(held))):
                if chance.random() < 0.4:
                    study.release(claim)
                else:
                    end(study, claim, 0.6 + 0.1 * chance.random())
    assert study.finished()
    assert {trial.state for trial in study.trials()} == {"complete"}
    got = Counter(trial.confirms for trial in study.trials())
    assert got == {None: 6, 1: 3, 3: 3, 4: 3}


def test_given_points_are_not_confirmed() -> None:
    with pytest.raises(UsageError, match="confirm repeats the best trials of a search"):
        sweep(sampler="given", pruner="none", confirm=[5, 3], enqueue=[{"learning_rate": 0.01, "label": "A"}])


@pytest.mark.parametrize("wrong", [[5], [5, 0], "5,3", [5.0, 3], [True, 3]])
def test_a_wrong_confirmation_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"test: confirm = .* it takes two whole numbers from 1"):
        sweep(confirm=wrong)


def test_the_chances_are_those_of_a_t_distribution() -> None:
    # Two groups: the difference of their means over its standard error has Student's t with 4 degrees of freedom.
    one, two = [0.70, 0.71, 0.72], [0.70, 0.69, 0.695]
    pooled = (variance(one) + variance(two)) / 2
    t = (fmean(one) - fmean(two)) / math.sqrt(pooled * 2 / 3)
    share = 1 + t * t / 4
    expected = 0.5 + 0.375 * t / math.sqrt(share) * (1 - t * t / (12 * share))  # its distribution function
    [first, second] = chances_to_be_best([one, two])
    assert first == pytest.approx(expected, abs=0.01)
    assert second == pytest.approx(1 - expected, abs=0.01)
    assert chances_to_be_best([[0.5], [0.6]]) == [None, None], "one seed each says nothing of the noise"
