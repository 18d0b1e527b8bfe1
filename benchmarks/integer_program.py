"""The one-shot integer program: a knapsack over the tables at each budget of a grid, nothing learned from trials.

As in Sony's Model Compression Toolkit, with latency beside bytes. The baseline of `benchmarks.search_efficiency`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.choices.space import SearchSpace
from autocompress.policy import Policy
from autocompress.prediction.knapsack import solve
from autocompress.problem import Problem
from benchmarks.evaluation_cache import ModelledLatency

SMALLEST_SHARE = 0.02


def integer_program(problem: Problem, space: SearchSpace, latency: ModelledLatency, count: int, seed: int) -> list[Policy]:
    """At most `count` distinct policies, in an order that the seed draws.

    The grid has as many sizes, evenly spaced on a log scale, as latencies; both from all-smallest to FP32.
    """
    effects = problem.effects()
    losses = [np.array([effect.divergence for effect in effects[name]]) for name in problem.parameters]
    sizes = [np.array([float(effect.size_bytes) for effect in effects[name]]) for name in problem.parameters]
    full = max(float(table.max()) for table in sizes)
    saved = [table / full - 1 for table in sizes]
    faster = [
        np.array([latency(space.alone(name, index)).ratio for index in range(options)]) - 1
        for name, options in problem.parameters.items()
    ]
    limits = _grid(saved, faster, math.ceil(math.sqrt(count)))
    found = [solve(losses, [saved, faster], [size - 1, time - 1]) for size, time in limits]
    rows = list({row.tobytes(): row for row in found if row is not None}.values())
    np.random.default_rng(seed).shuffle(rows)
    return [space.policy(problem.indices(row)) for row in rows[:count]]


def _grid(saved: Sequence[NDArray[np.float64]], faster: Sequence[NDArray[np.float64]], side: int) -> list[tuple[float, float]]:
    """Limits of size ratio and latency ratio."""
    smallest = max(SMALLEST_SHARE, 1 + sum(float(table.min()) for table in saved))
    fastest = 1 + sum(float(table.min()) for table in faster)
    return [(float(s), float(t)) for s in np.geomspace(1, smallest, side) for t in np.linspace(1, fastest, side)]
