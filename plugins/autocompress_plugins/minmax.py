"""Observer `minmax`: the whole range that was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Observer, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class MinMax(Observer):
    """Smallest and largest value of all batches, and 0. Clips nothing; one outlier makes every step coarser."""

    name = "minmax"

    def __post_init__(self) -> None:
        self._low = self._high = 0.0

    def update(self, batch: NDArray[np.float32]) -> None:
        """Widen the range to the batch (any shape)."""
        self._low = min(self._low, float(batch.min(initial=0.0)))
        self._high = max(self._high, float(batch.max(initial=0.0)))

    def range(self, bits: int) -> tuple[float, float]:
        """The extremes; (0, 0) before any batch."""
        return self._low, self._high


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Extremes."""
    return [MinMax]
