"""Bayesian linear regression with a prior for each coefficient (Bishop 2006, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = NDArray[np.float64]

ENOUGH = 5
"""Observations from which noise can be judged."""

GAUSSIAN_MEDIAN = 0.6745
"""Median of the absolute value of a standard Gaussian variable."""

LEAST_LEFT = 1e-12
"""Least share of an observation that others leave open: rounding, where it alone decides."""


@dataclass(frozen=True)
class LinearModel:
    """The posterior of `value = features @ coefficients + noise`, all Gaussian.

    Solved in the space of the coefficients, in units of their prior spread: the cost hardly grows with the observations.

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
        return features @ self.mean, self._spread(features * self.prior_spread)

    @cached_property
    def mean(self) -> Array:
        """Posterior mean of the coefficients."""
        shift: Array = cho_solve((self._factor, True), self._weighted.T @ (self._residual / self.noise))
        return self.prior_mean + self.prior_spread * shift

    def left_out(self) -> tuple[Array, Array]:
        """What the model predicts for each observation from all the others, with its standard deviation: each shape (N,).

        Rasmussen and Williams 2006, equation 5.12; the deviation includes the observation's own noise.
        """
        own = np.square(self._spread(self._weighted))  # how far each observation decides what is predicted for it
        left = np.maximum(1 - own, LEAST_LEFT)
        return self.values - (self.values - self.features @ self.mean) / left, self.noise / np.sqrt(left)

    def with_honest_noise(self) -> LinearModel:
        """The same with noise as large as left-out predictions show: what was measured at different times varies by more.

        Their typical error (the median, which outliers do not move) shall be that of a Gaussian; noise is never made smaller.
        """
        if len(self.values) < ENOUGH:
            return self
        predicted, spread = self.left_out()
        typical = float(np.median(np.abs(predicted - self.values) / spread)) / GAUSSIAN_MEDIAN
        return replace(self, noise=self.noise * max(1.0, typical))

    def _spread(self, scaled: Array) -> Array:
        """Standard deviations of the sums of coefficients, in units of their prior spread, that rows say: shape (M,)."""
        reduced = solve_triangular(self._factor, scaled.T, lower=True)
        return np.asarray(np.sqrt(np.square(reduced).sum(axis=0)))

    @cached_property
    def _residual(self) -> Array:
        """What the prior does not say of the observations, shape (N,)."""
        return np.asarray(self.values - self.features @ self.prior_mean)

    @cached_property
    def _weighted(self) -> Array:
        """Features in units of the prior spread and of the noise, shape (N, coefficients)."""
        return np.asarray(self.features * self.prior_spread / self.noise[:, None])

    @cached_property
    def _factor(self) -> Array:
        """Lower Cholesky factor of the posterior precision in units of the prior's, shape (coefficients, coefficients)."""
        precision = self._weighted.T @ self._weighted
        return np.asarray(cholesky(precision + np.eye(len(precision)), lower=True))
