"""Metric `agreement`: how often a file decides like the FP32 file. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Agreement(Metric):
    """Share of examples with the same largest output as the FP32 file: 0 to 1; FP32 itself has 1."""

    name = "agreement"
    against_reference = True
    class_scores = True

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """1 where both agree, else 0; shape (N,).

        Args:
            outputs: scores or logits, shape (N, classes).
            expected: those of the FP32 file, shape (N, classes).
        """
        predicted, reference = (scores.reshape(len(scores), -1).argmax(axis=1) for scores in (outputs, expected))
        agree: NDArray[np.bool_] = predicted == reference
        return agree.astype(np.float64)


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Agreement with FP32."""
    return [Agreement]
