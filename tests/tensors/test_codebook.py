"""Lloyd-Max levels against scipy, exhaustive search, and the known optimum for a normal distribution."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress import kernel_levels, lloyd_max, nearest

NORMAL = [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0691, 2.7326]
"""Positive levels of the best 16 for a standard normal density (Max 1960, table I)."""


def loss(values: Tensor, importance: Tensor, levels: Tensor) -> float:
    distance = (values.double()[:, None] - levels.double()).abs().amin(1)
    return float((importance.double() * distance.square()).sum())


def best_partition(values: Tensor, importance: Tensor, count: int) -> float:
    """Least loss over all ways to cut the sorted values into cells, each with its mean as level."""
    order = values.argsort()
    x, h = values[order].double().numpy(), importance[order].double().numpy()
    best = np.inf
    for cuts in combinations(range(1, len(x)), count - 1):
        edges = [0, *cuts, len(x)]
        cells = [(x[a:b], h[a:b]) for a, b in pairwise(edges)]
        best = min(best, sum(float((w * (v - np.average(v, weights=w)) ** 2).sum()) for v, w in cells))
    return best


def test_levels_of_a_normal_distribution_are_those_of_the_literature() -> None:
    values = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(200_000) + 0.5) / 200_000)
    found = lloyd_max(values, torch.ones(len(values)), 16)
    np.testing.assert_allclose(found[8:], NORMAL, rtol=2e-3)
    np.testing.assert_allclose(found[:8], -found.flip(0)[:8], rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_few_levels_are_close_to_the_best_partition(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values, importance = torch.randn(14, generator=random), torch.rand(14, generator=random) + 0.1
    found = loss(values, importance, lloyd_max(values, importance, 4))
    assert best_partition(values, importance, 4) * (1 - 1e-6) <= found <= 1.5 * best_partition(values, importance, 4)


def test_each_level_is_the_weighted_mean_of_its_cell() -> None:
    random = torch.Generator().manual_seed(0)
    values, importance = torch.randn(3000, generator=random) ** 3, torch.rand(3000, generator=random)
    levels = lloyd_max(values, importance, 8)
    cells = nearest(values, levels)
    for index, level in enumerate(levels.tolist()):
        inside = cells == index
        assert level == pytest.approx(np.average(values[inside], weights=importance[inside]), rel=1e-3, abs=1e-3)


def test_importance_draws_levels() -> None:
    values = torch.linspace(0, 1, 1001)
    heavy = torch.where(values > 0.9, 100.0, 1.0)
    even, drawn = (lloyd_max(values, importance, 8) for importance in (torch.ones(1001), heavy))
    assert (drawn > 0.9).sum() > (even > 0.9).sum()


@pytest.mark.parametrize("values", [torch.zeros(5), torch.tensor([3.0]), torch.tensor([1.0, 1.0, 2.0])])
def test_fewer_values_than_levels(values: Tensor) -> None:
    levels = lloyd_max(values, torch.ones(len(values)), 16)
    assert levels.shape == (16,)
    assert levels.isfinite().all()
    assert loss(values, torch.ones(len(values)), levels) < 1e-6


def test_levels_for_a_kernel_are_distinct_bytes_with_a_zero() -> None:
    found = kernel_levels(torch.tensor([-300.0, -5.4, -5.3, 1.6, 40.5, 126.7]))
    assert found.tolist() == [-127, -5, 0, 40, 127]
    assert kernel_levels(torch.zeros(4)).tolist() == [0]


def test_nearest_is_nearest() -> None:
    random = torch.Generator().manual_seed(0)
    levels = torch.randn(9, generator=random).sort().values
    values = torch.randn(500, generator=random) * 2
    expected = (values[:, None] - levels).abs().argmin(1)
    assert torch.equal(nearest(values, levels), expected)
