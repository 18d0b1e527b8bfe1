"""Metric `cosine`: how much an embedding turns away from that of the FP32 file. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Cosine(Metric):
    """Mean cosine of the angle between output and FP32 output, all axes but the first taken as one: -1 to 1; FP32 has 1."""

    name = "cosine"
    against_reference = True
    percent = False

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """The value x y / (|x| |y|) of each example; shape (N,). Two zero vectors are equal, one alone is at a right angle.

        Args:
            outputs: shape (N, ...).
            expected: those of the FP32 file, same shape.
        """
        x, y = (part.reshape(len(part), -1).astype(np.float64) for part in (outputs, expected))
        product = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine = (x * y).sum(axis=1) / np.where(product > 0, product, 1.0)
        equal: NDArray[np.bool_] = (x == y).all(axis=1)
        return np.where(equal, 1.0, cosine)


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Cosine similarity to FP32."""
    return [Cosine]
