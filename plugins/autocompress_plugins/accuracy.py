"""Metric `accuracy`: top-1 accuracy of a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Accuracy(Metric):
    """Share of examples whose largest output is the target's: 0 to 1."""

    name = "accuracy"
    class_scores = True

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """1 where the prediction is right, else 0; shape (N,).

        Args:
            outputs: scores or logits, shape (N, classes).
            expected: class labels, shape (N,).
        """
        predicted = outputs.reshape(len(outputs), -1).argmax(axis=1)
        right: NDArray[np.bool_] = predicted == expected.reshape(len(outputs))
        return right.astype(np.float64)


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Top-1 accuracy."""
    return [Accuracy]
