"""Policies worth a thought: solutions of the knapsack at a grid of prices, and variations of the best trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

Variation = Callable[[Choices, NDArray[np.int64], np.random.Generator], NDArray[np.int64]]

PRICES = 20
"""Prices of each cost in the grid."""

PRICE_RANGE = (1e-3, 1e3)
"""Prices, in units of the whole range of losses for the whole range of a cost."""

LONGEST_RUN = 6


def at_prices(losses: Array, costs: Sequence[Array], sizes: NDArray[np.int64]) -> Choices:
    """The option of each parameter with the least loss plus priced costs, for every combination of prices.

    Each is the best policy for the costs that it happens to have (Everett 1963, generalized Lagrange multipliers).

    Args:
        losses: shape (P, options); costs: the same, one for each cost; sizes: number of options, shape (P,).
    """
    impossible = np.arange(losses.shape[1]) >= sizes[:, None]
    total = np.where(impossible, np.inf, losses)[None]
    for cost in costs:
        grid = _prices(losses, cost, impossible)
        total = (total[:, None] + grid[None, :, None, None] * cost[None, None]).reshape(-1, *losses.shape)
    return np.unique(total.argmin(axis=2), axis=0)


def _prices(losses: Array, cost: Array, impossible: NDArray[np.bool_]) -> Array:
    """From almost nothing to almost everything for a cost; a cost that nothing changes has one price."""
    saved = _range(cost, impossible)
    if saved <= 0:
        return np.zeros(1)
    return np.concatenate([[0.0], np.geomspace(*PRICE_RANGE, PRICES) * _range(losses, impossible) / saved])


def _range(values: Array, impossible: NDArray[np.bool_]) -> float:
    low, high = np.where(impossible, np.inf, values).min(axis=1), np.where(impossible, -np.inf, values).max(axis=1)
    return float((high - low).sum())


def neighbours(row: NDArray[np.int64], sizes: NDArray[np.int64]) -> Choices:
    """The policy itself, then every policy that differs from it in one parameter, shape (1 + sum (options - 1), P)."""
    options = [(parameter, option) for parameter, count in enumerate(sizes) for option in range(count)]
    changed = [(parameter, option) for parameter, option in options if option != row[parameter]]
    rows = np.repeat(row[None], 1 + len(changed), axis=0)
    for target, (parameter, option) in zip(rows[1:], changed, strict=True):
        target[parameter] = option
    return rows


def mutants(parents: Choices, sizes: NDArray[np.int64], count: int, random: np.random.Generator) -> Choices:
    """Variations of parents: single changes, runs of neighbouring parameters changed alike, and crossings."""
    ways: list[Variation] = [_few, _few, _few, _run, _cross]
    rows = [ways[index % len(ways)](parents, sizes, random) for index in range(count)]
    return np.unique(np.array(rows), axis=0)


def _parent(parents: Choices, random: np.random.Generator) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = parents[random.integers(len(parents))].copy()
    return chosen


def _few(parents: Choices, sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """One to three parameters at random."""
    row = _parent(parents, random)
    for parameter in random.permutation(len(row))[: random.integers(1, 4)]:
        row[parameter] = random.integers(sizes[parameter])
    return row


def _run(parents: Choices, sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Neighbours get options at the same place of their tables: precision that changes between them costs time."""
    row, start = _parent(parents, random), random.integers(len(sizes))
    run = slice(start, start + random.integers(2, LONGEST_RUN + 1))
    row[run] = np.round(random.random() * (sizes[run] - 1)).astype(np.int64)
    return row


def _cross(parents: Choices, sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Each parameter from one of two parents."""
    one, other = _parent(parents, random), _parent(parents, random)
    return np.where(random.random(len(sizes)) < 0.5, one, other)
