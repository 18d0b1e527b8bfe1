"""Bayesian linear regression with a prior for each coefficient (Bishop 2006, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]


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

    def left_out(self) -> Array:
        """What the model predicts for each observation from all the others: shape (N,) (Rasmussen and Williams 2006, 5.12)."""
        inverse = cho_solve(self._factor, np.eye(len(self.values)))
        residual = self.values - self.features @ self.prior_mean
        predicted: Array = self.values - (inverse @ residual) / np.diag(inverse)
        return predicted

    @cached_property
    def _scaled(self) -> Array:
        return self.features * self.prior_spread

    @cached_property
    def _factor(self) -> tuple[Array, bool]:
        covariance = self._scaled @ self._scaled.T + np.diag(np.square(self.noise))
        factor: tuple[Array, bool] = cho_factor(covariance, lower=True)
        return factor
