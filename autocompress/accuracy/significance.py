"""Whether the drop of a metric is real or may be chance: a paired test on the same examples."""

from __future__ import annotations

import numpy as np

from autocompress.accuracy.intervals import RESAMPLES, Statistics, paired_draws
from autocompress.components import Metric

LEVEL = 0.05
"""A drop whose p is below is called real."""


def paired_p(metric: Metric, reference: Statistics, candidate: Statistics, resamples: int = RESAMPLES) -> float:
    """Two-sided p of "both files are equally good", from their statistics on the same examples.

    Where the metric is the share of examples that a file gets right, the exact McNemar test: of the examples that only one of
    both gets right, either is as likely to (McNemar 1947, with the binomial distribution). For other metrics twice the smaller
    share of paired bootstrap draws on either side of 0, the sample itself counted on both (Davison and Hinkley 1997, chapter
    4), so at least 2 / (resamples + 1).
    """
    if _is_share(metric, reference, candidate):
        from scipy.stats import binomtest

        lost, won = (int((one > other).sum()) for one, other in ((reference, candidate), (candidate, reference)))
        return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    draws = paired_draws(metric, reference, candidate, resamples)
    tails = [1 + int(side.sum()) for side in (draws <= 0, draws >= 0)]
    return min(1.0, 2 * min(tails) / (resamples + 1))


def _is_share(metric: Metric, *statistics: Statistics) -> bool:
    """Whether the metric is the mean of figures that are 0 or 1."""
    return metric.is_mean and all(figures.ndim == 1 and bool(np.isin(figures, (0, 1)).all()) for figures in statistics)
