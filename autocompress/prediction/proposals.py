"""Policies that the measured tables of single options call best, as if effects added up: no trial is needed for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.prediction.knapsack import solve
from autocompress.problem import Choices, Problem

SMALLEST_SHARE = 0.02
"""Sums of bytes saved may exceed the file where options overlap, as codes and channels of one layer do."""


def table_proposals(problem: Problem, count: int) -> Choices:
    """The least sum of divergences at each of `count` sizes, evenly spaced on a log scale, the largest first.

    The sizes lie between that of FP32, which is not among them, and the sum of the smallest options, which is. Each is a
    multiple-choice knapsack (`autocompress.prediction.knapsack`), as in Sony's Model Compression Toolkit.

    Returns:
        Distinct policies, shape (at most count, parameters).
    """
    if not problem.parameters:
        return np.zeros((0, 0), dtype=np.int64)
    effects = [problem.effects()[name] for name in problem.parameters]
    losses = [np.array([effect.divergence for effect in options]) for options in effects]
    sizes = [np.array([float(effect.size_bytes) for effect in options]) for options in effects]
    full = max(float(table.max()) for table in sizes)
    saved = [table - full for table in sizes]
    found = [solve(losses, [saved], [limit - full]) for limit in _limits(full, saved, losses, count)]
    rows = [row for row in found if row is not None]
    return np.array(list({row.tobytes(): row for row in rows}.values()), dtype=np.int64).reshape(-1, len(effects))


def _limits(
    full: float, saved: list[NDArray[np.float64]], losses: list[NDArray[np.float64]], count: int
) -> NDArray[np.float64]:
    """Bytes of the whole file; options that do not run count for nothing."""
    most = sum(float(table[np.isfinite(loss)].min(initial=0.0)) for table, loss in zip(saved, losses, strict=True))
    smallest = max(full + most, SMALLEST_SHARE * full)
    return np.geomspace(full, smallest, count + 1)[1:]
