"""Observer `moving_average`: extremes, averaged over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Observer, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class MovingAverage(Observer):
    """Exponential moving average of each batch's smallest and largest value: one odd batch moves the range a little only.

    `m_t = momentum * m_(t-1) + (1 - momentum) * extreme_t` with m_0 = 0 (Jacob et al. 2018, arXiv 1712.05877, section 3.1). The
    answer is `m_t / (1 - momentum^t)`, an average whose weights add up to 1 after any number of batches (Kingma and Ba 2015,
    arXiv 1412.6980, section 3): calibration has a few batches where training, for which the average was made, has thousands.

    Attributes:
        momentum: weight of the past, at least 0 and below 1; 0: the last batch alone counts.
    """

    name = "moving_average"

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"observer.moving_average.momentum={self.momentum}: expected at least 0, below 1")
        self._low = self._high = 0.0
        self._batches = 0

    def update(self, batch: NDArray[np.float32]) -> None:
        """Move both ends towards the batch's extremes (any shape), widened to include 0."""
        self._low += (1 - self.momentum) * (float(batch.min(initial=0.0)) - self._low)
        self._high += (1 - self.momentum) * (float(batch.max(initial=0.0)) - self._high)
        self._batches += 1

    def range(self, bits: int) -> tuple[float, float]:
        """The averaged extremes; (0, 0) before any batch."""
        if not self._batches:
            return 0.0, 0.0
        total = 1 - self.momentum**self._batches
        return self._low / total, self._high / total


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Averaged extremes."""
    return [MovingAverage]
