"""The model of curves: what it knows, what it does not, and that it is told apart from guessing."""

import numpy as np
import pytest
import torch

from cifar_sweep.search.curve_model import EXACT, CurveModel, Places, factor_of

EPOCHS = (1, 2, 4, 8)


def curve(rate: float, epoch: int) -> float:
    """A made-up accuracy: best at a rate of 0.6, and rising with the epochs."""
    return float(0.1 + 0.5 * np.exp(-8 * (rate - 0.6) ** 2) * (1 - 0.7 / epoch))


def places(rates: list[float], epochs: list[int], trials: list[int]) -> Places:
    features = np.array([[rate] for rate in rates])
    return Places.of(features, epochs, [0.0] * len(rates), trials)


@pytest.fixture(scope="module")
def model() -> CurveModel:
    """Twelve trials, of which the fourth and every third one after it were stopped after two epochs."""
    generator = np.random.default_rng(0)
    rows = [(k / 11, epoch, k) for k in range(12) for epoch in EPOCHS if k % 3 or epoch <= 2]
    model = CurveModel([0])
    known = places([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    values = [curve(rate, epoch) + 0.003 * generator.normal() for rate, epoch, _ in rows]
    for _ in range(3):
        model.fit(known, values, generator=torch.Generator().manual_seed(0))
    model.know(known, values)
    return model


def test_the_end_of_a_curve_that_was_stopped_is_foreseen(model: CurveModel) -> None:
    stopped = [0, 3, 6, 9]
    mean, covariance = model.posterior(places([k / 11 for k in stopped], [8] * 4, stopped))
    deviations = covariance.diagonal().sqrt()
    for k, expected, deviation in zip(stopped, mean.tolist(), deviations.tolist(), strict=True):
        assert abs(expected - curve(k / 11, 8)) < max(3 * deviation, 0.02)
        assert deviation < 0.1


def test_a_trial_that_was_never_trained_is_less_certain_than_one_that_was(model: CurveModel) -> None:
    _, covariance = model.posterior(places([4 / 11, 4 / 11], [8, 8], [4, -1]))
    known, new = covariance.diagonal().sqrt().tolist()
    assert known < new


def test_the_noise_is_about_what_was_added(model: CurveModel) -> None:
    assert 0.0005 < model.noise < 0.02


def test_equal_accuracies_are_no_fault() -> None:
    model = CurveModel([0])
    known = places([0.1, 0.5, 0.9], [1, 1, 1], [0, 1, 2])
    model.fit(known, [0.1] * 3, generator=torch.Generator().manual_seed(0))
    model.know(known, [0.1] * 3)
    mean, covariance = model.posterior(places([0.3], [8], [-1]))
    assert mean.item() == pytest.approx(0.1, abs=0.01)
    assert torch.isfinite(covariance).all()


def test_what_is_fitted_on_many_observations_is_a_part_of_them() -> None:
    rows = [(k / 99, epoch, k) for k in range(100) for epoch in EPOCHS]
    known = places([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    values = [curve(rate, epoch) for rate, epoch, _ in rows]
    model = CurveModel([0])
    model.fit(known, values, generator=torch.Generator().manual_seed(0))
    model.know(known, values)
    mean, _ = model.posterior(places([0.6], [8], [-1]))
    assert mean.item() == pytest.approx(curve(0.6, 8), abs=0.02)


@pytest.mark.parametrize("defect", [0.0, 1e-5, 1e-3])
def test_a_covariance_that_rounding_has_spoilt_has_a_factor_all_the_same(defect: float) -> None:
    covariance = torch.ones(3, 3, dtype=EXACT)
    covariance[0, 1] = covariance[1, 0] = 1 + defect
    factor = factor_of(covariance)
    assert torch.isfinite(factor).all()
    assert (factor @ factor.T - covariance).abs().max() < 0.02
