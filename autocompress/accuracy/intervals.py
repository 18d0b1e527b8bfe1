"""How sure a figure is: paired bootstrap over examples (Efron and Tibshirani 1993, section 8 and 13)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.components import Metric

RESAMPLES = 1000

Statistics = NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """Value of the reference minus that of the candidate on the same examples.

    Attributes:
        low, high: 95 % interval.
        upper: upper one-sided 90 % bound.
        spread: standard error.
    """

    value: float
    low: float
    high: float
    upper: float
    spread: float


def paired_drop(metric: Metric, reference: Statistics, candidate: Statistics, resamples: int = RESAMPLES) -> Drop:
    """Drop of the metric with its interval; examples are resampled in pairs, which cancels what is hard for both."""
    draws = paired_draws(metric, reference, candidate, resamples)
    low, high, upper = np.percentile(draws, [2.5, 97.5, 90.0])
    value = metric.value(reference) - metric.value(candidate)
    return Drop(value, float(low), float(high), float(upper), float(draws.std()))


def paired_draws(metric: Metric, reference: Statistics, candidate: Statistics, resamples: int) -> NDArray[np.float64]:
    """The drop on resampled examples, the same ones for both files: shape (resamples,)."""
    return _bootstrap(
        lambda chosen: metric.value(reference[chosen]) - metric.value(candidate[chosen]), len(reference), resamples
    )


def interval(metric: Metric, statistics: Statistics, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the metric's value."""
    draws = _bootstrap(lambda chosen: metric.value(statistics[chosen]), len(statistics), resamples)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _bootstrap(figure: Callable[[NDArray[np.int64]], float], examples: int, resamples: int) -> NDArray[np.float64]:
    random = np.random.default_rng(0)
    return np.array([figure(random.integers(examples, size=examples)) for _ in range(resamples)])
