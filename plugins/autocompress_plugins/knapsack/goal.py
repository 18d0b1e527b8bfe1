"""How good predicted policies are for what the search is after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress import Costs, Measurement, Problem

Array = NDArray[np.float64]

POWERS = (0.5, 0.75, 1.0)
"""Exponents tried for how a drop follows from a loss: flips by chance go with the root of a divergence, damage with itself."""

WORST_DROP = 0.1
"""Drop at which the front's volume begins, as a share of FP32's accuracy."""

SAMPLES = 4000

TIE = 0.02
"""Latency ratio that a loss as large as the limit is worth where the fastest policy is looked for."""


@dataclass(frozen=True)
class DropLink:
    """Drop of the metric expected for a loss: `factor * loss ** power`."""

    factor: float
    power: float

    @classmethod
    def fit(cls, losses: Array, drops: Array, weights: Array) -> DropLink:
        """Least squares over the exponents; drops may be negative by chance."""
        fits = [cls._scaled(losses**power, drops, weights, power) for power in POWERS]
        return min(fits, key=lambda link: float((weights * np.square(drops - link.drop(losses))).sum()))

    @classmethod
    def _scaled(cls, values: Array, drops: Array, weights: Array, power: float) -> DropLink:
        scale = float((weights * np.square(values)).sum())
        return cls(max(float((weights * values * drops).sum()) / scale, 1e-9) if scale > 0 else 1.0, power)

    def drop(self, losses: Array) -> Array:
        """Drops of losses."""
        result: Array = self.factor * losses**self.power
        return result

    def loss(self, drop: float) -> float:
        """The loss that gives a drop."""
        return float((drop / self.factor) ** (1 / self.power))


def single_value(problem: Problem, losses: Array, costs: Costs, loss_limit: float, caution: float) -> tuple[Array, Array]:
    """By how much policies are predicted to miss the budget, and what they score; lower is better for both. Shapes (N,).

    Args:
        loss_limit: where the allowed drop is expected, infinite when any is allowed.
        caution: standard deviations that are added to predicted costs.
    """
    bounds = {
        "size_ratio": costs.size_ratio + caution * costs.size_spread,
        "latency_ratio": costs.latency_ratio + caution * costs.latency_spread,
    }
    excess = [np.maximum(0.0, bounds[name] / limit - 1) for name, limit in problem.ratio_limits().items()]
    excess.append(np.maximum(0.0, losses / loss_limit - 1))
    relative = losses / (loss_limit if np.isfinite(loss_limit) else max(float(losses.max()), 1e-12))
    scores = {
        "accuracy": losses,
        "size": costs.size_ratio,
        "latency": costs.latency_ratio - caution * costs.latency_spread + TIE * relative,
    }
    missed: Array = np.sum(excess, axis=0)
    return missed, scores[problem.objective]


class Front:
    """The volume that measured policies dominate, and what a predicted one would add; sampled (Bader and Zitzler 2011)."""

    def __init__(self, measured: Sequence[Measurement], baseline: Measurement, random: np.random.Generator) -> None:
        self._worst = np.array([WORST_DROP * abs(baseline.accuracy or 1.0), 1.0, 1.0])
        figures = [[m.accuracy_drop, m.latency_ratio, m.size_ratio] for m in measured]
        points = _undominated(np.array(figures, dtype=np.float64).reshape(-1, 3))
        best = np.minimum(points.min(axis=0, initial=np.inf), self._worst) if len(points) else np.zeros(3)
        low = np.array([min(best[0], 0.0), 0.7 * best[1], 0.7 * best[2]])
        samples = low + random.random((SAMPLES, 3)) * (self._worst - low)
        self._open = samples[~_dominated(samples, points).any(axis=1)] if len(points) else samples

    def gain(self, drops: Array, costs: Costs) -> Array:
        """Share of the samples that each policy would newly dominate, shape (N,)."""
        points = np.stack([drops, costs.latency_ratio, costs.size_ratio], axis=1)
        gained: Array = _dominated(self._open, points).sum(axis=0) / SAMPLES
        return gained


def _undominated(points: Array) -> Array:
    """The points that no other is better than; they dominate all that the points do."""
    found = points[np.lexsort(points.T[::-1])]  # no later one is better than an earlier one
    place = 0
    while place < len(found):
        worse = (found[place + 1 :] >= found[place]).all(axis=1)
        found = np.concatenate([found[: place + 1], found[place + 1 :][~worse]])
        place += 1
    return found


def _dominated(samples: Array, points: Array) -> NDArray[np.bool_]:
    """Whether each sample is at least as bad as each point in everything: shape (samples, points)."""
    found = np.ones((len(samples), len(points)), dtype=np.bool_)
    for ours, theirs in zip(samples.T.copy(), points.T, strict=True):  # figure by figure: many times faster than all at once
        found &= ours[:, None] >= theirs
    return found
