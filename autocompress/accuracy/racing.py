"""When a candidate is dropped on part of the search set: a paired sequential test against what it must not lose to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from autocompress.accuracy.intervals import Statistics, paired_drop
from autocompress.components import Metric

ERROR = 0.001
"""Bound on the chance that a candidate is dropped that would have kept every margin on the whole set."""

RESAMPLES = 200


@dataclass(frozen=True)
class Rival:
    """A file that a candidate must not be worse than by more than the margin.

    Attributes:
        name: for people.
        statistics: the metric's, on the whole search set.
        margin: in the metric's own unit, at least 0.
    """

    name: str
    statistics: Statistics
    margin: float


@dataclass(frozen=True)
class Defeat:
    """How far a candidate is behind a rival on the examples seen so far: so far that more of them cannot change it."""

    rival: Rival
    behind: float
    examples: int

    def __str__(self) -> str:
        return f"{self.behind:.4f} behind {self.rival.name} on {self.examples} examples, {self.rival.margin:.4f} is allowed"


def find_defeat(metric: Metric, statistics: Statistics, rivals: Sequence[Rival], looks: int) -> Defeat | None:
    """Test the statistics of a candidate on the first examples against each rival's on the same; None: it may still hold.

    A candidate is defeated when its distance d behind a rival keeps more than the margin after z standard errors are taken off.
    The standard error of d as an estimate of the distance on all N examples, from n of them in random order, is s sqrt(1 - n/N)
    with the paired bootstrap's s (the finite population correction: Cochran 1977, section 2.6). The chance of error is spent
    evenly on all looks and rivals, z = Phi^-1(1 - ERROR / (looks * rivals)), so that their union keeps the bound whatever their
    dependence (Bonferroni); Pocock 1977 needs a little less where looks share examples. Stopping trials early by paired
    comparison on the same examples is racing (Maron and Moore 1997, "The Racing Algorithm").

    Args:
        statistics: shape (n, ...) with n < N.
        looks: how often one candidate is tested before the whole set is seen.
    """
    if not rivals:
        return None
    z = NormalDist().inv_cdf(1 - ERROR / (looks * len(rivals)))
    defeats = (_defeat(metric, statistics, rival, z) for rival in rivals)
    return next((defeat for defeat in defeats if defeat is not None), None)


def _defeat(metric: Metric, statistics: Statistics, rival: Rival, z: float) -> Defeat | None:
    count, whole = len(statistics), len(rival.statistics)
    behind = paired_drop(metric, rival.statistics[:count], statistics, RESAMPLES)
    least = behind.value - z * behind.spread * math.sqrt(1 - count / whole)
    return Defeat(rival, behind.value, count) if least > rival.margin else None
