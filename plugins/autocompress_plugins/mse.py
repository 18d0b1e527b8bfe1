"""Observer `mse`: the range that loses least to rounding and clipping together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Observer, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 8192
"""A multiple of 4, so that growing merges whole bins. At 8 bits a step spans eight bins or more, growth included."""

SAMPLE = 1 << 20
"""Values counted of each batch, so that large feature maps cost no more than a few milliseconds."""

ROUNDS = 2
"""How often both ends are chosen."""

SHRINKS = np.linspace(1.0, 0.02, 50)
"""Ends of the range that are tried, as fractions of the extremes."""


@dataclass
class Mse(Observer):
    """The (low, high) of least mean squared error after quantization, found on a histogram of all batches.

    Each end is chosen for the other in turn. Data without negative values keeps low = 0. Zeros are not counted: a grid
    holds them exactly, and after a Relu they are half of the data.
    """

    name = "mse"

    def __post_init__(self) -> None:
        self._low = self._high = 0.0
        self._limit = 0.0  # the bins divide [-limit, limit] evenly
        self._counts = np.zeros(BINS, np.int64)

    def update(self, batch: NDArray[np.float32]) -> None:
        """Count the values of the batch (any shape)."""
        self._low = min(self._low, float(batch.min(initial=0.0)))
        self._high = max(self._high, float(batch.max(initial=0.0)))
        self._grow(max(-self._low, self._high))
        values = _sample(batch)
        values = values[values != 0]
        index = (values / (self._limit or 1.0) * (BINS // 2) + BINS // 2).astype(np.int32)
        self._counts += np.bincount(index.clip(max=BINS - 1), minlength=BINS)

    def _grow(self, limit: float) -> None:
        """Double the histogram's limit, two bins becoming one, until it reaches `limit`."""
        self._limit = self._limit or limit
        while self._limit < limit:
            self._limit *= 2
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(merged, BINS // 4)

    def range(self, bits: int) -> tuple[float, float]:
        """The ends of least error for `bits` bits; (0, 0) before any batch."""
        if not self._limit:
            return 0.0, 0.0
        low, high = self._low, self._high
        for _ in range(ROUNDS):
            highs, lows = self._high * SHRINKS, self._low * SHRINKS
            high = float(highs[np.argmin(self._errors(bits, np.full_like(highs, low), highs))])
            low = float(lows[np.argmin(self._errors(bits, lows, np.full_like(lows, high)))])
        return low, high

    def _errors(self, bits: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        """Summed squared error of the counted values for each range; all of shape (ranges,)."""
        filled = self._counts.nonzero()[0]
        values = (filled + 0.5 - BINS // 2) * (2 * self._limit / BINS)  # (filled bins,)
        levels = 2**bits - 1
        step = ((high - low) / levels)[:, None]
        zero = np.round(-low[:, None] / step)
        codes = np.clip(np.round(values / step) + zero, 0, levels)  # (ranges, filled bins)
        errors: NDArray[np.float64] = np.square((codes - zero) * step - values) @ self._counts[filled]
        return errors


def _sample(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most `SAMPLE` values at equal distances, which share no factor with the size: all rows and channels take turns."""
    stride = -(-batch.size // SAMPLE)
    while math.gcd(stride, batch.size) > 1:
        stride += 1
    return batch.reshape(-1)[:: max(stride, 1)]


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Least squared error."""
    return [Mse]
