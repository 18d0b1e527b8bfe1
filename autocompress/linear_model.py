"""Bayesian linear regression with a prior for each coefficient (Bishop 2006, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

ENOUGH = 5
"""Observations from which noise can be judged."""

GAUSSIAN_MEDIAN = 0.6745
"""Median of the absolute value of a standard Gaussian variable."""


@dataclass(frozen=True)
class LinearModel:
    """The posterior of `value = features @ coefficients + noise`, all Gaussian.

    Attributes:
        features: of the observations, shape (N, coefficients).
        values, noise: what was observed and its standard deviation, shape (N,).
        prior_mean, prior_spread: of each coefficient, shape (coefficients,).
    """

    features: Array
    values: Array
    noise: Array
    prior_mean: Array
    prior_spread: Array

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noise-free value, each shape (M,), for features of shape (M, coefficients)."""
        spread = features * self.prior_spread
        shared = spread @ self._scaled.T
        mean = features @ self.mean
        variance = np.square(spread).sum(axis=1) - (shared * cho_solve(self._factor, shared.T).T).sum(axis=1)
        return mean, np.sqrt(np.maximum(variance, 0.0))

    @cached_property
    def mean(self) -> Array:
        """Posterior mean of the coefficients."""
        residual = self.values - self.features @ self.prior_mean
        shift: Array = self._scaled.T @ cho_solve(self._factor, residual)
        return self.prior_mean + self.prior_spread * shift

    def left_out(self) -> tuple[Array, Array]:
        """What the model predicts for each observation from all the others, with its standard deviation: each shape (N,).

        Rasmussen and Williams 2006, equation 5.12; the deviation includes the observation's own noise.
        """
        inverse = cho_solve(self._factor, np.eye(len(self.values)))
        residual = self.values - self.features @ self.prior_mean
        return self.values - (inverse @ residual) / np.diag(inverse), 1 / np.sqrt(np.diag(inverse))

    def with_honest_noise(self) -> LinearModel:
        """The same with noise as large as left-out predictions show: what was measured at different times varies by more.

        Their typical error (the median, which outliers do not move) shall be that of a Gaussian; noise is never made smaller.
        """
        if len(self.values) < ENOUGH:
            return self
        predicted, spread = self.left_out()
        typical = float(np.median(np.abs(predicted - self.values) / spread)) / GAUSSIAN_MEDIAN
        return replace(self, noise=self.noise * max(1.0, typical))

    @cached_property
    def _scaled(self) -> Array:
        return self.features * self.prior_spread

    @cached_property
    def _factor(self) -> tuple[Array, bool]:
        covariance = self._scaled @ self._scaled.T + np.diag(np.square(self.noise))
        factor: tuple[Array, bool] = cho_factor(covariance, lower=True)
        return factor
