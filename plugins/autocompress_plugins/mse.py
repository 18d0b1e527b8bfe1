"""Observer `mse`: the range that loses least to rounding and clipping together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Histogram, Observer, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 2
"""How often both ends are chosen."""

SHRINKS = np.linspace(1.0, 0.02, 50)
"""Ends of the range that are tried, as fractions of the extremes."""

FINE = 2.0
"""A step of fewer bins than this rounds values that the histogram cannot tell apart."""


@dataclass
class Mse(Observer):
    """The (low, high) of least mean squared error after quantization, found on a histogram of all batches.

    Each end is chosen for the other in turn. Data without negative values keeps low = 0. (As the activation ranges of
    Banner et al. 2019, arXiv 1810.05723, section 3, but on the histogram instead of an assumed distribution.)
    """

    name = "mse"

    def __post_init__(self) -> None:
        self._seen = Histogram()

    def update(self, batch: NDArray[np.float32]) -> None:
        """Count the values of the batch (any shape)."""
        self._seen.add(batch)

    def range(self, bits: int) -> tuple[float, float]:
        """The ends of least error for `bits` bits; (0, 0) before any batch."""
        if not self._seen.limit:
            return 0.0, 0.0
        low, high = self._seen.low, self._seen.high
        highs, lows = high * SHRINKS, low * SHRINKS
        for _ in range(ROUNDS):
            high = float(highs[np.argmin(self._errors(bits, np.full_like(highs, low), highs))])
            low = float(lows[np.argmin(self._errors(bits, lows, np.full_like(lows, high)))])
        return low, high

    def _errors(self, bits: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        """Summed squared error of the counted values for each range; all of shape (ranges,).

        Where steps are finer than bins, as at 16 bits, a value's rounding error is uniform over a step: step^2 / 12.
        """
        filled = self._seen.counts.nonzero()[0]
        values = self._seen.values(filled)  # (filled bins,)
        levels = 2**bits - 1
        step = ((high - low) / levels)[:, None]
        zero = np.round(-low[:, None] / step)
        nearest = np.clip(values, -zero * step, (levels - zero) * step)  # (ranges, filled bins)
        rounding = np.where(step < FINE * self._seen.width, step**2 / 12, np.square(np.round(nearest / step) * step - nearest))
        errors: NDArray[np.float64] = (np.square(nearest - values) + rounding) @ self._seen.counts[filled]
        return errors


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Least squared error."""
    return [Mse]
