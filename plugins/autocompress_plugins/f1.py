"""Metric `f1`: macro F1 of a classifier, for classes that differ in size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class F1(Metric):
    """Mean over the classes of 2 TP / (2 TP + FP + FN), each class counting the same: 0 to 1.

    A class that neither occurs nor is predicted in a set does not count (as in scikit-learn's f1_score). It is no mean over
    examples, so a set's figure is computed from all its predictions.
    """

    name = "f1"
    class_scores = True

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """The predicted and the true class of each example; shape (N, 2).

        Args:
            outputs: scores or logits, shape (N, classes).
            expected: class labels, shape (N,).
        """
        predicted = outputs.reshape(len(outputs), -1).argmax(axis=1)
        return np.stack([predicted, expected.reshape(len(outputs))], axis=1).astype(np.float64)

    def value(self, statistics: NDArray[np.float64]) -> float:
        """Macro F1 of the examples."""
        predicted, true = statistics.T.astype(np.int64)
        classes = int(statistics.max(initial=0)) + 1
        right = np.bincount(true[predicted == true], minlength=classes)
        involved = np.bincount(predicted, minlength=classes) + np.bincount(true, minlength=classes)  # 2 TP + FP + FN
        occurs = involved > 0
        return float(np.mean(2 * right[occurs] / involved[occurs]))


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Macro F1."""
    return [F1]
