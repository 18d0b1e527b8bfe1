"""The examples on which a file is furthest from FP32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COUNT = 100
"""At most so many are written out."""


@dataclass(frozen=True)
class WorstExample:
    """One example.

    Attributes:
        index: in the set, from 0.
        divergence: distance of the file's output from FP32's (`autocompress.accuracy.distance.output_divergence`).
    """

    index: int
    divergence: float


def worst_examples(divergence: NDArray[np.float64], count: int = COUNT) -> list[WorstExample]:
    """The examples with the largest divergence, shape (N,), the worst first; those that diverge by nothing are not."""
    order = np.argsort(-divergence, kind="stable")[:count]
    return [WorstExample(int(at), float(divergence[at])) for at in order if divergence[at] > 0]
