"""Observer `percentile`: the range without its rarest values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Histogram, Observer, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HALF = 1 << 15


@dataclass
class Percentile(Observer):
    """The values between two percentiles, `100 - percentile` and `percentile`, of all batches together.

    Values are counted by the upper 16 bits of their float32 pattern: sign, exponent and 7 bits of mantissa. Such bins are
    narrower than 0.8 % of the value they hold, whatever the range, so that the histogram never has to grow, and batches add
    up in any order.

    Attributes:
        percentile: above 50, at most 100.
    """

    name = "percentile"

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"observer.percentile.percentile={self.percentile}: expected above 50, at most 100")
        self._counts = np.zeros(2 * _HALF, np.int64)
        self._low = self._high = 0.0

    def update(self, batch: NDArray[np.float32]) -> None:
        """Count the values of the batch (any shape)."""
        self._low = min(self._low, float(batch.min(initial=0.0)))
        self._high = max(self._high, float(batch.max(initial=0.0)))
        patterns = np.ascontiguousarray(Histogram.sampled(batch), np.float32).view(np.uint32) >> 16
        self._counts += np.bincount(patterns, minlength=2 * _HALF)

    def range(self, bits: int) -> tuple[float, float]:
        """The two percentiles, widened to include 0 and cut to the extremes; (0, 0) before any batch."""
        positive, negative = self._counts[:_HALF], self._counts[_HALF:]
        beyond = self._counts.sum() * (1 - self.percentile / 100)
        return max(self._low, -_magnitude(negative, beyond)), min(_magnitude(positive, beyond), self._high)


def _magnitude(counts: NDArray[np.int64], beyond: float) -> float:
    """Magnitude that `beyond` of the counted values exceed; bins are ordered from 0 outwards."""
    exceeding = counts[::-1].cumsum()[::-1] - counts  # values in bins further out
    index = int(np.argmax(exceeding <= beyond))
    inner, outer = (np.arange(index, index + 2, dtype=np.uint32) << 16).view(np.float32).tolist()
    share = min(1.0, (beyond - exceeding[index]) / max(counts[index], 1))
    return float(outer - share * (outer - inner))


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Percentiles."""
    return [Percentile]
