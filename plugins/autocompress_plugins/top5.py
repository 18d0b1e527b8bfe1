"""Metric `top5`: top-5 accuracy of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Top5(Metric):
    """Share of examples whose target is among the five largest outputs: 0 to 1."""

    name = "top5"
    class_scores = True

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """1 where the target is among the five, else 0; shape (N,).

        Quantized outputs are often equal. Of equal ones the lower class comes first, as in top-1 accuracy.

        Args:
            outputs: scores or logits, shape (N, classes).
            expected: class labels, shape (N,).
        """
        scores = outputs.reshape(len(outputs), -1).astype(np.float64)
        labels = expected.reshape(len(outputs), 1).astype(np.intp)
        own = np.take_along_axis(scores, labels, axis=1)  # (N, 1)
        behind = (scores < own) | ((scores == own) & (np.arange(scores.shape[1]) >= labels))  # includes the target itself
        rank: NDArray[np.int64] = scores.shape[1] - behind.sum(axis=1)
        return (rank < 5).astype(np.float64)


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Top-5 accuracy."""
    return [Top5]
