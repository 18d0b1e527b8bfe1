"""Counts of the values that a tensor takes over many batches, for observers that choose a range by them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 8192
"""A multiple of 4, so that growing merges whole bins. After growth at least a quarter of them lies within the extremes."""

SAMPLE = 1 << 20
"""Values counted of each batch, so that large feature maps cost no more than a few milliseconds."""


class Histogram:
    """Even bins over [-limit, limit]; the limit doubles whenever a larger value comes.

    Zeros are not counted: each grid holds them exactly, and after a Relu they are half of the data.

    Attributes:
        low, high: extremes of all values, widened to include 0.
        limit: where the bins end; 0 before the first value that is not 0.
        counts: int64, shape (BINS,).
    """

    def __init__(self) -> None:
        self.low = self.high = self.limit = 0.0
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return 2 * self.limit / BINS

    def values(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Centres of the bins of the given indices; same shape."""
        return (index.astype(np.float64) + 0.5 - BINS // 2) * self.width

    def add(self, batch: NDArray[np.float32]) -> None:
        """Count the values of a batch (any shape)."""
        self.low = min(self.low, float(batch.min(initial=0.0)))
        self.high = max(self.high, float(batch.max(initial=0.0)))
        self._grow(max(-self.low, self.high))
        values = self.sampled(batch)
        values = values[values != 0]
        index = (values / (self.limit or 1.0) * (BINS // 2) + BINS // 2).astype(np.int32)
        self.counts += np.bincount(index.clip(max=BINS - 1), minlength=BINS)

    @staticmethod
    def sampled(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """At most `SAMPLE` values at equal distances, which share no factor with the size: all rows and channels take turns."""
        stride = -(-batch.size // SAMPLE)
        while math.gcd(stride, batch.size) > 1:
            stride += 1
        return batch.reshape(-1)[:: max(stride, 1)]

    def _grow(self, limit: float) -> None:
        """Double the limit, two bins becoming one, until it reaches `limit`."""
        self.limit = self.limit or limit
        while self.limit < limit:
            self.limit *= 2
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 4)
