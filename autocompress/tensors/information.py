"""How much of a distribution quantization loses: the Kullback-Leibler divergence of a histogram from its quantized form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNSEEN = 0.5
"""Count that stands for a bin where clipped values end up and no other value lies, so that the divergence stays finite."""


def divergence(counts: NDArray[np.int64], first: int, last: int, cells: int) -> float:
    """KL(P || Q) in nats when the bins first .. last are quantized to a number of cells and the others are clipped.

    P has the values beyond these bins in the outermost two. Q has the bins merged into cells, each spread evenly over those of
    its bins that are not empty. (Migacz 2017, "8-bit Inference with TensorRT", NVIDIA GTC.)

    Args:
        counts: of all bins, shape (bins,).
    """
    inside = counts[first:last].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    seen = clipped > 0
    p, q = clipped[seen], np.maximum(_merged(inside, cells)[seen], UNSEEN)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _merged(counts: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Each cell's count spread evenly over its bins that are not empty; shape of `counts`."""
    cell = np.arange(len(counts)) * cells // len(counts)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    sums, filled = np.add.reduceat(counts, starts), np.add.reduceat((counts > 0).astype(np.float64), starts)
    each = sums / np.maximum(filled, 1.0)
    number = np.cumsum(np.diff(cell, prepend=-1) > 0) - 1  # of the cell, empty ones left out
    return np.where(counts > 0, each[number], 0.0)
