"""Figures that have no model of their own, such as memory: as linear in what is predicted and in the options, from trials."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress import Costs

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

PENALTY = 1e-3
"""Of squared weights (ridge regression: Hoerl and Kennard 1970), small enough to follow the few trials that there are."""

OPTION = 0.5
"""Scale of what an option does by itself against what the predicted size and time do."""


def estimated(rows: Choices, costs: Costs, origin: Array, known: Choices, known_costs: Costs, values: Array) -> Array:
    """Values of candidates, shape (N, L), by ridge regression in its dual form.

    Args:
        rows: candidates, shape (N, P), with their predicted costs.
        origin: values of the policy whose options are all 0, shape (L,).
        known: measured policies, shape (M, P), with their predicted costs and their values, shape (M, L).
    """
    candidates, measured = (_costs(found) @ _costs(known_costs).T for found in (costs, known_costs))
    candidates = candidates + OPTION**2 * _shared(rows, known)
    measured = measured + OPTION**2 * _shared(known, known)
    weights = np.linalg.solve(measured + PENALTY * np.eye(len(known)), values - origin)
    result: Array = origin + candidates @ weights
    return result


def _costs(costs: Costs) -> Array:
    """How far predicted size and time are from FP32's, shape (N, 2)."""
    return np.stack([costs.size_ratio, costs.latency_ratio], axis=1) - 1


def _shared(rows: Choices, known: Choices) -> Array:
    """Share of the parameters in which both have the same option other than 0, shape (N, M)."""
    share: Array = ((rows[:, None] == known[None]) & (known[None] > 0)).mean(axis=2)
    return share
