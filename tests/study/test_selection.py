"""The winner's curse: what is said to be expected of the chosen trial on new images."""

from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from cifar_sweep.study.record import TrialRecord
from cifar_sweep.study.selection import expected, judged, packed, unpacked


def trial(number: int, correct: list[int], **attributes: Any) -> TrialRecord:
    told = {"correct": packed(correct), **attributes}
    frozen = create_trial(state=TrialState.COMPLETE, value=sum(correct) / len(correct), user_attrs=told)
    frozen.number = number
    return TrialRecord(frozen)


def drawn(accuracies: list[float], images: int, generator: np.random.Generator) -> list[list[int]]:
    return [(generator.random(images) < accuracy).astype(int).tolist() for accuracy in accuracies]


@pytest.mark.parametrize("images", [1, 8, 13, 100])
def test_what_is_packed_is_unpacked(images: int) -> None:
    correct = [k % 3 % 2 for k in range(images)]
    stored = packed(correct)
    assert stored is not None
    assert unpacked(stored).tolist() == correct
    assert packed([]) is None


def test_the_expectation_is_right_on_average_and_its_interval_covers() -> None:
    """Of 30 trials of one true accuracy each is the best by luck alone."""
    shown, errors, covered = [], [], []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        rows = np.array(drawn([0.7] * 30, 400, generator), dtype=np.float32)
        found = judged(rows, lambda accuracies: accuracies.argmax(axis=1), new_images=400, resamples=200)
        shown.append(found.accuracy + found.optimism - 0.7)
        errors.append(found.accuracy - 0.7)
        covered.append(found.low <= generator.binomial(400, 0.7) / 400 <= found.high)
    assert np.mean(shown) > 0.03, "the choice flatters"
    assert abs(np.mean(errors)) < 0.01
    assert np.mean(covered) > 0.9


def test_one_trial_is_not_flattered() -> None:
    [correct] = drawn([0.7], 1000, np.random.default_rng(0))
    found = expected([trial(0, correct)], new_images=1000)
    assert found is not None
    assert found.optimism < 0.002
    assert found.accuracy == pytest.approx(sum(correct) / 1000, abs=0.002)
    assert found.high - found.low == pytest.approx(2 * 1.96 * (0.7 * 0.3 * 2 / 1000) ** 0.5, rel=0.05)


def test_nothing_is_said_where_one_that_competed_did_not_store_what_it_names() -> None:
    known = [trial(k, row) for k, row in enumerate(drawn([0.7, 0.6], 100, np.random.default_rng(0)))]
    assert expected(known, new_images=100) is not None
    unknown = create_trial(state=TrialState.COMPLETE, value=0.1)
    unknown.number = 2
    assert expected([*known, TrialRecord(unknown)], new_images=100) is None
    assert expected([], new_images=100) is None


def test_of_a_confirmation_the_choice_is_among_its_candidates() -> None:
    """A lucky trial of the search does not count: the winner is chosen by its fresh seeds."""
    generator = np.random.default_rng(0)
    rows = drawn([0.99, 0.8, 0.6, 0.6, 0.75, 0.75], 1000, generator)
    told = [{} if of is None else {"confirms": of, "confirm": (2, 2)} for of in (None, None, 0, 0, 1, 1)]
    trials = [trial(k, rows[k], **told[k]) for k in range(6)]
    found = expected(trials, new_images=1000)
    assert found is not None
    assert found.accuracy == pytest.approx(max(sum(rows[4]), sum(rows[5])) / 1000, abs=0.02)


@pytest.mark.parametrize(("correct", "low", "high"), [([1] * 36, 0.85, 1.0), ([0] * 36, 0.0, 0.15)])
def test_none_of_a_few_images_is_no_certainty(correct: list[int], low: float, high: float) -> None:
    found = expected([trial(0, correct)], new_images=36)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
