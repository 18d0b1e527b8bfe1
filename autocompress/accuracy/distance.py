"""How far a file's outputs are from those of FP32: what steers a search where a metric on few examples is too coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_POWER = 1e-30


def output_divergence(outputs: NDArray[Any], reference: NDArray[Any], *, class_scores: bool) -> NDArray[np.float64]:
    """Squared error of each example as a share of the reference's power, 0 where both are equal: shape (N,).

    mean (output - reference)^2 / mean reference^2, the power a mean over all examples. Scores of classes are compared after the
    mean over the classes is taken off each example's, for it changes no probability. (The KL divergence of the probabilities
    sees only the examples that the model is unsure of: over few examples it ranks layers by chance.)

    Args:
        outputs, reference: shape (N, ...); scores of classes have shape (N, classes).
    """
    ours, theirs = (array.reshape(len(array), -1).astype(np.float64) for array in (outputs, reference))
    if class_scores:
        ours, theirs = (scores - scores.mean(axis=1, keepdims=True) for scores in (ours, theirs))
    error: NDArray[np.float64] = np.square(ours - theirs).mean(axis=1)
    return error / max(float(np.square(theirs).mean()), SMALLEST_POWER)
