"""A model of learning curves: one Gaussian process over parameters and time, from a search's first epochs on.

The accuracy of a trial with parameters x after epoch t is modelled as

    f(x, t) = m + a0 k_t + a1 k_x + a2 k_x k_t + [same trial] (a3 + a4 k_t) + noise

with k_x a Matern 5/2 kernel with a length for each parameter, and k_t squared exponentials over the logarithm of the
epoch and over how far StepLR has decayed. The first term is what all curves share, the next two are what parameters do
to a whole curve and to its course, the terms of one trial are what its seed does. A trial's last value is so predicted
from its own curve, from its neighbours' and from the schedule (freeze-thaw: Swersky et al. 2014, arXiv 1406.3896; a
product kernel over parameters and epochs: Lin et al. 2024, arXiv 2410.09239). Lengths, amplitudes and noise have
log-normal priors and are set to their most probable values. A few hundred observations: dense float64, one Cholesky.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EXACT = torch.float64
JITTER = 1e-6  # of the variance: keeps equal inputs apart
MOST_FITTED = 250  # observations that the parameters of the kernel are fitted on; the posterior knows all
STEPS = 12  # of L-BFGS, from the last fit's result
# Log-normal priors, in units of the standardised accuracy and of the unit cube: mean and deviation of the logarithm.
_LENGTH, _TIME, _DECAY = (0.0, 0.8), (math.log(0.5), 0.7), (math.log(0.5), 0.7)
_AMPLITUDES = ((math.log(0.5), 1.0), (0.0, 1.0), (math.log(0.5), 1.0), (math.log(0.15), 0.7), (math.log(0.15), 0.7))
_NOISE = (math.log(0.1), 0.7)


@dataclass(frozen=True)
class Places:
    """Where accuracies are known or asked for."""

    features: Tensor  # the trials' parameters [n, d], each range 1 long
    epochs: Tensor  # their logarithms [n]
    decays: Tensor  # how many factors of ten the learning rate has decayed [n]
    trials: Tensor  # which trial each is of [n]; equal numbers share a seed

    @classmethod
    def of(
        cls, features: npt.NDArray[np.float64], epochs: Sequence[float], decays: Sequence[float], trials: Sequence[int]
    ) -> "Places":
        """From plain numbers; epochs as they are counted, from 1."""
        return cls(
            torch.from_numpy(features),
            torch.tensor(epochs, dtype=EXACT).log2() / 3,
            torch.tensor(decays, dtype=EXACT),
            torch.tensor(trials),
        )

    def some(self, rows: Tensor) -> "Places":
        """Those of these rows."""
        return Places(self.features[rows], self.epochs[rows], self.decays[rows], self.trials[rows])


class CurveModel:
    """The Gaussian process: `fit` it, have it `know`, then ask it for a `posterior`.

    `columns` says of each feature which parameter it belongs to: the features of one share a length.
    """

    def __init__(self, columns: Sequence[int]) -> None:
        self._columns = torch.tensor(columns, dtype=torch.long)
        self._parameters = max(columns, default=-1) + 1
        priors = [*[_LENGTH] * self._parameters, _TIME, _DECAY, *_AMPLITUDES, _NOISE]
        self._prior = torch.tensor(priors, dtype=EXACT).T
        self._logs = self._prior[0].clone()

    def fit(self, places: Places, accuracies: Sequence[float], *, generator: torch.Generator) -> None:
        """Set lengths, amplitudes and noise to their most probable values, near those of the last fit.

        Where that fails numerically, they stay as they are. To be followed by `know`.
        """
        values = torch.tensor(accuracies, dtype=EXACT)
        if len(values) > MOST_FITTED:
            rows = torch.randperm(len(values), generator=generator)[:MOST_FITTED]
            places, values = places.some(rows), values[rows]
        values = (values - values.mean()) / _spread(values)
        logs = self._logs.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = self._loss(logs, places, values)
            found.backward()  # type: ignore[no-untyped-call]
            return found

        try:
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        except RuntimeError:  # no Cholesky factor
            return
        if logs.isfinite().all():
            self._logs = logs.detach()

    def know(self, places: Places, accuracies: Sequence[float]) -> None:
        """Take these observations as what is known."""
        values = torch.tensor(accuracies, dtype=EXACT)
        self._known, self._mean, self._scale = places, values.mean(), _spread(values)
        with torch.no_grad():
            self._factor = factor_of(self._noisy(self._logs, places))
            standard = ((values - self._mean) / self._scale)[:, None]
            self._weights = torch.cholesky_solve(standard, self._factor)

    def posterior(self, places: Places) -> tuple[Tensor, Tensor]:
        """Mean [n] and covariance [n, n] of the accuracies there, a trial's own noise left out."""
        with torch.no_grad():
            across = self._kernel(self._logs, self._known, places)
            explained = torch.linalg.solve_triangular(self._factor, across, upper=False)
            covariance = self._kernel(self._logs, places, places) - explained.T @ explained
            return (across.T @ self._weights)[:, 0] * self._scale + self._mean, covariance * self._scale**2

    @property
    def noise(self) -> float:
        """The standard deviation of one observation about its curve."""
        return float(self._logs[-1].exp() * self._scale)

    @property
    def seed_variance(self) -> float:
        """The variance that trials of equal parameters have at their ends, an observation's noise left out."""
        return float(self._logs[-3:-1].exp().square().sum() * self._scale**2)

    def _loss(self, logs: Tensor, places: Places, values: Tensor) -> Tensor:
        """The negative logarithm of the posterior density of the parameters, but for a constant."""
        factor = torch.linalg.cholesky(self._noisy(logs, places))
        weighted = torch.cholesky_solve(values[:, None], factor)[:, 0]
        unlikely = ((logs - self._prior[0]) / self._prior[1]).square().sum() / 2
        loss: Tensor = values @ weighted / 2 + factor.diagonal().log().sum() + unlikely
        return loss

    def _noisy(self, logs: Tensor, places: Places) -> Tensor:
        noise = logs[-1].exp().square() + JITTER
        return self._kernel(logs, places, places) + noise * torch.eye(len(places.trials), dtype=EXACT)

    def _kernel(self, logs: Tensor, first: Places, second: Places) -> Tensor:
        lengths, (time, decay, *amplitudes, _) = logs[: self._parameters].exp(), logs[self._parameters :].exp()
        lengths = lengths[self._columns]
        distance = (5 * _squares(first.features / lengths, second.features / lengths)).clamp_min(1e-12).sqrt()
        alike = (1 + distance + distance.square() / 3) * (-distance).exp()
        apart = _squares(first.epochs[:, None] / time, second.epochs[:, None] / time)
        apart = apart + _squares(first.decays[:, None] / decay, second.decays[:, None] / decay)
        near = (-apart / 2).exp()
        shared, level, course, own_level, own_course = (amplitude.square() for amplitude in amplitudes)
        own = first.trials[:, None] == second.trials[None]
        covariance: Tensor = shared * near + alike * (level + course * near) + own * (own_level + own_course * near)
        return covariance


def factor_of(covariance: Tensor) -> Tensor:
    """The Cholesky factor of a covariance; where rounding has left it without one, of one with a little more noise."""
    variance = covariance.diagonal().mean().clamp_min(1e-12)
    factor = covariance
    for share in (JITTER, 1e-4, 1e-2):
        jitter = share * variance * torch.eye(len(covariance), dtype=EXACT)
        factor, failed = torch.linalg.cholesky_ex(covariance + jitter)
        if not failed:
            break
    return factor


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """The squared distances of the rows of two matrices."""
    squares = first.square().sum(1)[:, None] + second.square().sum(1)[None] - 2 * first @ second.T
    return squares.clamp_min(0)


def _spread(values: Tensor) -> Tensor:
    """The standard deviation, at least a tenth of a point: equal accuracies have none."""
    return values.std(correction=0).clamp_min(1e-3)
