"""What options surely cost in the metric: one drop on few examples is coarse, those of comparable options together are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SURE_ERRORS = 2.0
"""Standard errors below the mean."""


def sure_drops(divergences: Array, drops: Array, resolution: float) -> Array:
    """The drop that options of such a divergence have on average, less two standard errors, at least 0: shape (N,).

    The average is the isotonic regression of drops on divergences (Barlow et al. 1972), which pools options that their drops
    do not order. Its error is that of a count: `sqrt(mean * resolution / options)`.

    Args:
        divergences, drops: of N options; an infinite divergence costs infinitely much.
        resolution: drop of one example; 0 where a metric is no share of examples.
    """
    from scipy.optimize import isotonic_regression  # takes most of a second

    found = np.full(len(drops), np.inf)
    order = np.argsort(divergences, kind="stable")
    order = order[np.isfinite(divergences[order])]
    if len(order):
        fitted = isotonic_regression(drops[order])
        mean, pooled = np.maximum(fitted.x, 0.0), np.repeat(np.diff(fitted.blocks), np.diff(fitted.blocks))
        found[order] = np.maximum(mean - SURE_ERRORS * np.sqrt(mean * resolution / pooled), 0.0)
    return found
