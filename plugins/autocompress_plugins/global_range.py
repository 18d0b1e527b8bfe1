"""Observer `global`: one range for all tensors of the net, the simplest thing that can be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Observer, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass
class GlobalRange(Observer):
    """Smallest and largest value of all tensors in all batches, and 0: every tensor has this range.

    The baseline that any other observer has to beat: a tensor whose values are small is left with a few of the codes.
    """

    name = "global"

    def __post_init__(self) -> None:
        self._low = self._high = 0.0

    def update(self, batch: NDArray[np.float32]) -> None:
        """Widen this tensor's range to the batch (any shape)."""
        self._low = min(self._low, float(batch.min(initial=0.0)))
        self._high = max(self._high, float(batch.max(initial=0.0)))

    def range(self, bits: int) -> tuple[float, float]:
        """The extremes of this tensor; (0, 0) before any batch."""
        return self._low, self._high

    def joined(self, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """The widest range, for every tensor."""
        low = min((low for low, _ in ranges.values()), default=0.0)
        high = max((high for _, high in ranges.values()), default=0.0)
        return dict.fromkeys(ranges, (low, high))


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """One range for all."""
    return [GlobalRange]
