"""Codebooks: a few levels of an INT8 kernel's own numbers, placed where the weights are."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 300
"""Most rounds of Lloyd's algorithm; on a normal distribution it ends sooner, within a millionth of the least error."""

TOLERANCE = 1e-6
"""Lloyd's algorithm stops when no level moves by more than this share of the range."""

LARGEST = 127
"""Largest level: the range of a signed byte, symmetric, so that a layer and its negative have the same codebook."""


def lloyd_max(values: Tensor, importance: Tensor, count: int) -> Tensor:
    """Levels of least weighted squared error, float32 ascending, shape (count,): sum_i h_i min_k (v_i - level_k)^2.

    One-dimensional k-means: each level moves to the mean of the values that are nearest to it until none moves (Lloyd 1982,
    "Least squares quantization in PCM"; Max 1960). It ends in a local optimum; the start, halfway between even levels and even
    shares of the importance, is the same for the same values. Costs one sort.

    Args:
        values: float32, shape (n,), n >= 1.
        importance: float32, not negative, shape (n,).
    """
    ordered, order = values.double().sort()
    mass = _running(importance.double()[order])
    moment = _running(importance.double()[order] * ordered)
    shares = (torch.arange(count).double() + 0.5) / count
    place = (torch.searchsorted(mass, shares * mass[-1]) - 1).clamp(0, len(ordered) - 1)
    levels = (ordered[place] + torch.lerp(ordered[0], ordered[-1], shares)) / 2
    for _ in range(STEPS):
        edges = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))])
        inside = mass[edges[1:]] - mass[edges[:-1]]
        moved = torch.where(inside > 0, (moment[edges[1:]] - moment[edges[:-1]]) / inside, levels)
        change, levels = (moved - levels).abs().max(), moved
        if change <= TOLERANCE * (ordered[-1] - ordered[0]):
            break
    return levels.sort().values.float()


def _running(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ... n entries."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def kernel_levels(levels: Tensor) -> Tensor:
    """The levels as an INT8 kernel has them: whole, ascending, within a byte, none twice, and one of them 0."""
    whole = levels.round().clamp(-LARGEST, LARGEST)
    whole[levels.abs().argmin()] = 0.0
    distinct: Tensor = torch.unique(whole)
    return distinct


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each value, int64, shape of `values`."""
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
