"""Observer `entropy`: the range that keeps most of the information in the values' distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Histogram, Observer, divergence, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANDIDATES = 128
"""Thresholds that are tried, at equal distances."""


@dataclass
class Entropy(Observer):
    """The threshold T of least Kullback-Leibler divergence between the histogram before and after quantization.

    For each T the values beyond it are clipped to it, which gives P, and the bins within it are merged into 2^bits cells, each
    of which is then spread evenly over those of its bins that are not empty, which gives Q. The range is [-T, T] cut to the
    extremes, for the T of least KL(P || Q) = sum_i P_i log(P_i / Q_i). (Migacz 2017, "8-bit Inference with TensorRT", NVIDIA
    GTC, there for one sign and 128 cells.)
    """

    name = "entropy"

    def __post_init__(self) -> None:
        self._seen = Histogram()

    def update(self, batch: NDArray[np.float32]) -> None:
        """Count the values of the batch (any shape)."""
        self._seen.add(batch)

    def range(self, bits: int) -> tuple[float, float]:
        """The range of least divergence for `bits` bits, of equal ones the widest; (0, 0) before any batch.

        With more cells than bins, as at 16 bits, that is the whole range.
        """
        if not self._seen.counts.any():
            return 0.0, 0.0
        ends = _candidates(self._seen.counts, 2**bits)
        divergences = [divergence(self._seen.counts, first, last, 2**bits) for first, last in ends]
        first, last = ends[int(np.argmin(divergences))]
        middle = len(self._seen.counts) // 2
        low, high = (first - middle) * self._seen.width, (last - middle) * self._seen.width
        return max(self._seen.low, low), min(self._seen.high, high)


def _candidates(counts: NDArray[np.int64], cells: int) -> list[tuple[int, int]]:
    """First bin of a range and the one behind its last: the widest, then the narrower ones that have a bin for each cell."""
    middle, filled = len(counts) // 2, counts.nonzero()[0]
    left, right = max(0, middle - int(filled[0])), max(0, int(filled[-1]) + 1 - middle)
    reaches = np.linspace(max(left, right), 1, CANDIDATES).round().astype(int).tolist()
    widest, *narrower = [(middle - min(left, reach), middle + min(right, reach)) for reach in dict.fromkeys(reaches)]
    return [widest, *((first, last) for first, last in narrower if last - first >= cells)]


@hookimpl
def autocompress_observers() -> list[type[Observer]]:
    """Least divergence."""
    return [Entropy]
