"""How much of what could be reached a set of files has reached: one figure for accuracy, latency and size together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna._hypervolume import compute_hypervolume

from autocompress.budget import Measurement

REFERENCE = (0.10, 1.0, 1.0)
"""Accuracy drop (share), latency ratio and size ratio beyond which a file counts for nothing."""


def hypervolume(figures: Sequence[Measurement], largest_drop: float = REFERENCE[0]) -> float:
    """Volume that the files dominate, as a share of the box between no drop, no time, no bytes and `REFERENCE`.

    A file that is more accurate than FP32 counts as one without a drop.

    Args:
        largest_drop: where the box ends, for a metric whose values are no shares.
    """
    points = [
        (max(0.0, f.accuracy_drop), f.latency_ratio, f.size_ratio)
        for f in figures
        if f.accuracy_drop is not None and f.latency_ratio is not None and f.size_ratio is not None
    ]
    reference = (largest_drop, *REFERENCE[1:])
    inside = [point for point in points if all(value < limit for value, limit in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    return float(compute_hypervolume(np.array(inside), np.array(reference)) / np.prod(reference))
