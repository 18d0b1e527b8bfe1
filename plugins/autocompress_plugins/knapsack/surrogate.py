"""What each option costs in accuracy, learned from trials: tables as the prior of an additive model, and a residual.

y(x) = g * sum_l theta_l(x_l) + r(x) + noise, where theta is Gaussian around the tables with an error that the options of one
parameter share and one of each option's own, both in proportion to the table; r is a Gaussian process over the number of
parameters in which two policies differ; g is the median ratio of what trials lost to what the tables say.
Draws by Matheron's rule (Wilson et al. 2020, "Efficiently sampling functions from Gaussian process posteriors").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

PARAMETER_ERROR, OPTION_ERROR = 0.35, 0.2
"""Relative standard deviations of a measured table: of all options of a parameter together, and of each."""

RESIDUAL, REACH = 0.15, 6.0
"""The residual's standard deviation as a share of the prediction, and the number of changes over which it fades."""

NOISE = 0.05
"""Standard deviation of a measured loss, as a share of the prediction."""

SATURATED = 1.0
"""Losses above this, in shares of the signal's power, say only that a policy is useless."""

MOST = 128
"""Latest trials that count: later ones lie where the search has arrived, and a proposal costs the same after a thousand."""

FLOOR = 1e-3
"""Least loss of an option, as a share of the median: a table measured on few examples may say 0."""


class LossSurrogate:
    """Posterior of the losses given what was measured.

    Args:
        tables: loss of each option of each parameter alone, P arrays.
        choices: measured policies, the latest last, shape (N, P).
        losses: theirs, shape (N,).
    """

    def __init__(self, tables: Sequence[Array], choices: Choices, losses: Array) -> None:
        useful = np.flatnonzero(losses < SATURATED)[-MOST:]
        self._choices, self._losses = choices[useful], losses[useful]
        self._padded = _padded(tables)
        self._padded *= self._scale()

    def _scale(self) -> float:
        """The ratio of trials to tables; 1 without trials."""
        expected = self._table_sums(self._choices).sum(axis=1)
        known = expected > 0
        return float(np.median(self._losses[known] / expected[known])) if known.any() else 1.0

    def _table_sums(self, choices: Choices) -> Array:
        """The tables' losses of each parameter, shape (N, P)."""
        sums: Array = self._padded[np.arange(choices.shape[1]), choices]
        return sums

    def predict(self, choices: Choices) -> Array:
        """Posterior mean, shape (M,)."""
        single, (ours, weights) = self._table_sums(choices), self._evidence
        additive = self._additive(choices, single, ours) @ weights
        total: Array = single.sum(axis=1) + additive + self._residual(choices, single.sum(axis=1), weights)
        return np.asarray(np.maximum(total, 0.0))

    def draw(self, random: np.random.Generator, spread: float) -> tuple[Array, Array]:
        """One possible set of tables, shape (P, options), with the residual's weights for `drawn`.

        Args:
            spread: 0 gives the posterior mean, 1 a posterior draw.
        """
        shape = self._padded.shape
        errors = PARAMETER_ERROR * random.normal(size=(shape[0], 1)) + OPTION_ERROR * random.normal(size=shape)
        prior = self._padded * (1 + spread * errors)
        ours, _ = self._evidence
        drawn = prior[np.arange(shape[0]), self._choices].sum(axis=1)
        noise = spread * self._noise * random.normal(size=len(drawn))
        weights = cho_solve(self._factor, self._losses - drawn - noise) if len(drawn) else np.zeros(0)
        return np.maximum(prior + self._shift(ours, weights), 0.0), weights

    def drawn(self, tables: Array, weights: Array, choices: Choices) -> Array:
        """Losses of policies under a draw, shape (M,)."""
        single = self._table_sums(choices).sum(axis=1)
        total: Array = tables[np.arange(choices.shape[1]), choices].sum(axis=1) + self._residual(choices, single, weights)
        return np.asarray(np.maximum(total, 0.0))

    def _shift(self, ours: Array, weights: Array) -> Array:
        """Covariance of every table entry with the measured losses, times weights: shape (P, options)."""
        shared = self._padded * (PARAMETER_ERROR**2 * (ours.T @ weights))[:, None]
        own = np.zeros_like(self._padded)
        for parameter, (column, values) in enumerate(zip(self._choices.T, ours.T, strict=True)):
            np.add.at(own[parameter], column, values * weights)
        shift: Array = shared + OPTION_ERROR**2 * self._padded * own
        return shift

    def _additive(self, choices: Choices, single: Array, ours: Array) -> Array:
        """Covariance of the additive part of M policies with the measured ones, shape (M, N)."""
        equal = self._spread_out(choices, single) @ self._spread_out(self._choices, ours).T
        covariance: Array = PARAMETER_ERROR**2 * single @ ours.T + OPTION_ERROR**2 * equal
        return covariance

    def _residual(self, choices: Choices, predicted: Array, weights: Array) -> Array:
        """Covariance of the residual of M policies with the measured ones, times weights of shape (N,): shape (M,)."""
        return RESIDUAL**2 * predicted * (self._likeness(choices) @ (self._expected * weights))

    def _likeness(self, choices: Choices) -> Array:
        """Correlation of the residual of M policies with that of the measured ones, shape (M, N)."""
        equal = self._spread_out(choices, np.ones(choices.shape)) @ self._marks.T
        found: Array = np.exp((np.arange(choices.shape[1] + 1) - choices.shape[1]) / REACH)[equal.astype(np.intp)]
        return found

    @cached_property
    def _marks(self) -> NDArray[np.float32]:
        """The measured policies, spread out."""
        return self._spread_out(self._choices, np.ones(self._choices.shape))

    @cached_property
    def _expected(self) -> Array:
        """What the tables say of the measured policies, shape (N,)."""
        return np.asarray(self._table_sums(self._choices).sum(axis=1))

    def _spread_out(self, choices: Choices, values: Array) -> NDArray[np.float32]:
        """The value of each parameter at the place of its option, 0 elsewhere: shape (M, parameters * options).

        A product of two such matrices sums over the parameters in which policies are equal.
        """
        options = self._padded.shape[1]
        wide = np.zeros((len(choices), self._padded.size), dtype=np.float32)
        places = choices + options * np.arange(choices.shape[1])
        wide[np.arange(len(choices))[:, None], places] = values
        return wide

    @cached_property
    def _noise(self) -> Array:
        noise: Array = NOISE * np.maximum(self._expected, self._losses) + 1e-9
        return noise

    @cached_property
    def _factor(self) -> tuple[Array, bool]:
        ours = self._table_sums(self._choices)
        residual = RESIDUAL**2 * np.outer(self._expected, self._expected) * self._likeness(self._choices)
        covariance = self._additive(self._choices, ours, ours) + residual
        factor: tuple[Array, bool] = cho_factor(covariance + np.diag(np.square(self._noise)), lower=True)
        return factor

    @cached_property
    def _evidence(self) -> tuple[Array, Array]:
        """The tables' losses of the measured policies, shape (N, P), and how far each pulls the mean, shape (N,)."""
        ours = self._table_sums(self._choices)
        if not len(ours):
            return ours, np.zeros(0)
        return ours, cho_solve(self._factor, self._losses - ours.sum(axis=1))


def _padded(tables: Sequence[Array]) -> Array:
    """One array (P, most options); what a parameter does not have is infinite nowhere but never chosen: 0."""
    finite = np.concatenate([table[np.isfinite(table)] for table in tables])
    worst, typical = 10 * finite.max(initial=1e-12), np.median(finite[finite > 0]) if (finite > 0).any() else 1e-12
    padded = np.zeros((len(tables), max(map(len, tables))))
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = np.where(np.isfinite(table), np.maximum(table, FLOOR * typical), worst)
    return padded
