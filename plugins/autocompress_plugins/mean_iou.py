"""Metric `mean_iou`: mean intersection over union of a segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl
from autocompress.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class MeanIou(Metric):
    """Mean over the classes of intersection / union, both summed over all pixels of a set: 0 to 1.

    (Everingham et al. 2015, "The Pascal Visual Object Classes Challenge: A Retrospective", section 4.2.3.) A class that neither
    occurs nor is predicted in a set does not count.

    Attributes:
        ignore_index: pixels with this target do not count; 255 marks the borders of objects in most data sets.
    """

    name = "mean_iou"

    ignore_index: int = 255

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """Pixels in the intersection of each class, then in the union of each class; shape (N, 2 * classes).

        Args:
            outputs: scores or logits, shape (N, classes, height, width).
            expected: classes, shape (N, height, width).

        Raises:
            DataError: the shapes do not belong together, or a target is no class.
        """
        if (len(outputs), *outputs.shape[2:]) != expected.shape or outputs.ndim < 3:
            raise DataError(
                f"metric mean_iou: outputs have shape {outputs.shape}, targets {expected.shape}; "
                "expected (N, classes, height, width) and (N, height, width)"
            )
        classes = outputs.shape[1]
        self._check(expected, classes)
        predicted = outputs.argmax(axis=1)
        return np.stack([self._counts(*pair, classes) for pair in zip(predicted, expected, strict=True)])

    def _check(self, expected: NDArray[np.generic], classes: int) -> None:
        wrong = np.setdiff1d(expected, [*range(classes), self.ignore_index])
        if len(wrong):
            raise DataError(
                f"metric mean_iou: target {wrong[0]}; the model has {classes} classes (0 to {classes - 1}): set "
                "metric.mean_iou.ignore_index if it marks pixels that do not count"
            )

    def _counts(self, predicted: NDArray[np.generic], expected: NDArray[np.generic], classes: int) -> NDArray[np.float64]:
        counted = expected != self.ignore_index
        pairs = expected[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
        confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        right = confusion.diagonal()
        return np.concatenate([right, confusion.sum(axis=0) + confusion.sum(axis=1) - right]).astype(np.float64)

    def value(self, statistics: NDArray[np.float64]) -> float:
        """Mean IoU of the examples; 0 when no pixel counts."""
        intersection, union = np.split(statistics.sum(axis=0), 2)
        occurs = union > 0
        return float(np.mean(intersection[occurs] / union[occurs])) if occurs.any() else 0.0


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Mean intersection over union."""
    return [MeanIou]
