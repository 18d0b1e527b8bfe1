"""How much of what could be reached a set of files has reached: one figure for accuracy, latency and size together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

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
    return dominated_volume(inside, reference) / math.prod(reference)


def dominated_volume(points: Sequence[tuple[float, float, float]], reference: tuple[float, float, float]) -> float:
    """Volume of what is at least as large as some point in all three coordinates, up to the reference; all points are below it.

    A sweep along the third coordinate: between neighbouring values of it the cut is the area that the points so far dominate.
    """
    ordered = sorted(points, key=lambda point: point[2])
    depths = [*(point[2] for point in ordered), reference[2]]
    staircase, volume = list[tuple[float, float]](), 0.0
    for (x, y, _), (near, far) in zip(ordered, pairwise(depths), strict=True):
        staircase = _with_step(staircase, (x, y))
        volume += (far - near) * _area(staircase, reference)
    return volume


def _with_step(staircase: Sequence[tuple[float, float]], point: tuple[float, float]) -> list[tuple[float, float]]:
    """The points of a plane that no other dominates, by their first coordinate, after one more."""
    if any(x <= point[0] and y <= point[1] for x, y in staircase):
        return list(staircase)
    return sorted([point, *((x, y) for x, y in staircase if x < point[0] or y < point[1])])


def _area(staircase: Sequence[tuple[float, float]], reference: tuple[float, float, float]) -> float:
    ends = [x for x, _ in staircase[1:]] + [reference[0]]
    return sum((end - x) * (reference[1] - y) for (x, y), end in zip(staircase, ends, strict=True))
