"""The best choice of one option for each parameter within limits: the multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ConfigError

Table = Sequence[NDArray[np.float64]]
"""For each parameter one figure for each of its options: the array of parameter p has shape (options of p,)."""


def solve(
    losses: Table, costs: Sequence[Table], limits: Sequence[float], *, gap: float = 1e-3, seconds: float = 1.0
) -> NDArray[np.int64] | None:
    """One option o_p for each parameter p with the least sum_p losses[p][o_p] where sum_p costs[c][p][o_p] <= limits[c].

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11), solved as a mixed integer linear program
    by branch and cut (HiGHS). Figures may be negative; an option whose loss or cost is not finite is never taken.

    Args:
        losses: what is kept small.
        costs, limits: any number of each, one limit a cost, or none. A limit is kept to 1e-6 of its cost's largest figure.
        gap: how far the loss may be above the least one, as a share of its excess over the loss without limits.
        seconds: after which the best choice so far is taken.

    Returns:
        Option indices, shape (parameters,); None where nothing fits, or nothing that fits was found in time.

    Raises:
        ConfigError: the tables do not have the same shape, or the limits are not as many as the costs.
    """
    _check(losses, costs, limits)
    if not losses:
        return np.zeros(0, dtype=np.int64)
    ends = np.cumsum([0, *(len(table) for table in losses)])
    loss, *rows = (np.concatenate(table) for table in (losses, *costs))
    usable = np.isfinite(np.stack([loss, *rows])).all(axis=0)
    if not all(usable[start:end].any() for start, end in pairwise(ends)):
        return None
    weights, bounds = _rows(rows, limits, usable)
    taken = _milp(_excess(loss, usable, ends), weights, bounds, usable, ends, gap, seconds)
    return None if taken is None else np.array([taken[start:end].argmax() for start, end in pairwise(ends)], dtype=np.int64)


def _check(losses: Table, costs: Sequence[Table], limits: Sequence[float]) -> None:
    if len(costs) != len(limits):
        raise ConfigError(f"knapsack: {len(costs)} costs and {len(limits)} limits; expected one limit for each cost")
    shapes = [[len(table) for table in tables] for tables in (losses, *costs)]
    if any(shape != shapes[0] for shape in shapes):
        raise ConfigError(f"knapsack: losses of {shapes[0]} options, costs of {shapes[1:]}; expected the same options in each")


def _excess(loss: NDArray[np.float64], usable: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss beyond the parameter's best option, in units in which the solver's absolute tolerances do not matter."""
    masked = np.where(usable, loss, np.inf)
    best = np.repeat(np.minimum.reduceat(masked, ends[:-1]), np.diff(ends))
    excess = np.where(usable, loss - best, 0.0)
    return excess / (np.median(excess[excess > 0]) if (excess > 0).any() else 1.0)


def _rows(
    rows: Sequence[NDArray[np.float64]], limits: Sequence[float], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs and limits in units of each cost's largest figure: shapes (costs, options) and (costs,)."""
    finite = np.where(usable, np.array(rows).reshape(len(rows), len(usable)), 0.0)
    scale = np.abs(finite).max(axis=1, keepdims=True)
    scale[scale == 0] = 1.0
    return finite / scale, np.array(limits, dtype=np.float64) / scale[:, 0]


def _milp(
    loss: NDArray[np.float64],
    weights: NDArray[np.float64],
    bounds: NDArray[np.float64],
    usable: NDArray[np.bool_],
    ends: NDArray[np.int64],
    gap: float,
    seconds: float,
) -> NDArray[np.float64] | None:
    """One binary variable for each option: shape (options,)."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a moment, and only a search needs it

    owners = np.repeat(np.eye(len(ends) - 1), np.diff(ends), axis=1)
    found = milp(
        loss,
        integrality=np.ones(len(loss), dtype=np.int64),
        bounds=Bounds(0.0, usable.astype(np.float64)),
        constraints=[LinearConstraint(owners, 1.0, 1.0), LinearConstraint(weights, -np.inf, bounds)],
        options={"mip_rel_gap": gap, "time_limit": seconds},
    )
    taken: NDArray[np.float64] | None = found.x
    return taken
