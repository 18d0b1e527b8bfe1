from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.errors import ConfigError
from autocompress.prediction.knapsack import solve

Tables = list[NDArray[np.float64]]


def total(tables: Sequence[NDArray[np.float64]], choice: Sequence[int]) -> float:
    return float(sum(table[index] for table, index in zip(tables, choice, strict=True)))


def least(losses: Tables, costs: Sequence[Tables], limits: Sequence[float]) -> float | None:
    """By trying every choice."""
    fitting = [
        total(losses, choice)
        for choice in product(*(range(len(table)) for table in losses))
        if all(total(cost, choice) <= limit + 1e-9 for cost, limit in zip(costs, limits, strict=True))
    ]
    return min(fitting, default=None)


def made_up(seed: int, counts: Sequence[int]) -> tuple[Tables, list[Tables]]:
    """Losses over six orders of magnitude, bytes, and latencies that an option may also make worse."""
    random = np.random.default_rng(seed)
    losses = [np.sort(np.exp(random.normal(scale=3, size=count))) * 1e-4 for count in counts]
    sizes = [np.sort(random.integers(1_000, 1_000_000, size=count))[::-1].astype(np.float64) for count in counts]
    latencies = [random.normal(scale=0.01, size=count) for count in counts]
    return losses, [sizes, latencies]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("limited", [[], [0], [1], [0, 1]], ids=str)
def test_equals_the_best_of_all_choices(seed: int, share: float, limited: Sequence[int]) -> None:
    losses, tables = made_up(seed, counts=(3, 1, 4, 2, 5))
    costs = [tables[index] for index in limited]
    limits = [sum(float(t.min()) for t in table) * (1 - share) + sum(float(t.max()) for t in table) * share for table in costs]
    expected, found = least(losses, costs, limits), solve(losses, costs, limits, gap=0)
    if expected is None:
        assert found is None
        return
    assert found is not None and found.dtype == np.int64
    assert total(losses, found) == pytest.approx(expected, rel=1e-6)
    for cost, limit in zip(costs, limits, strict=True):
        assert total(cost, found) <= limit + 1e-6 * max(float(np.abs(table).max()) for table in cost)


def test_a_limit_that_is_met_exactly_is_met() -> None:
    losses, (sizes, _) = made_up(0, counts=(3, 3, 3))
    smallest = sum(float(table.min()) for table in sizes)
    assert solve(losses, [sizes], [smallest]) is not None
    assert solve(losses, [sizes], [smallest - 10]) is None


def test_an_option_without_a_finite_figure_is_not_taken() -> None:
    losses = [np.array([np.inf, 2.0, 3.0]), np.array([1.0, 0.0])]
    cost = [np.array([0.0, np.nan, 1.0]), np.array([0.0, np.inf])]
    assert solve(losses, [cost], [10.0]) == pytest.approx([2, 0])
    assert solve([np.array([np.inf])], [], []) is None


def test_losses_may_be_negative() -> None:
    losses, cost = [np.array([-5.0, -1.0]), np.array([0.0, -3.0])], [np.array([2.0, 1.0]), np.array([1.0, 2.0])]
    assert solve(losses, [cost], [4.0], gap=0) == pytest.approx([0, 1])
    assert solve(losses, [cost], [3.0], gap=0) == pytest.approx([0, 0])


def test_nothing_to_choose() -> None:
    assert solve([], [], []) == pytest.approx(np.zeros(0))


def test_sixty_parameters_take_a_fraction_of_a_second() -> None:
    losses, (sizes, latencies) = made_up(1, counts=[10] * 60)
    limits = [0.4 * sum(float(table.max()) for table in sizes), 0.0]
    start = time.perf_counter()
    assert solve(losses, [sizes, latencies], limits, seconds=10) is not None
    assert time.perf_counter() - start < 5


def test_refuses_tables_that_do_not_belong_together() -> None:
    losses = [np.zeros(2), np.zeros(3)]
    with pytest.raises(ConfigError, match=r"losses of \[2, 3\] options, costs of \[\[2, 2\]\]"):
        solve(losses, [[np.zeros(2), np.zeros(2)]], [1.0])
    with pytest.raises(ConfigError, match="0 costs and 1 limits"):
        solve(losses, [], [1.0])
