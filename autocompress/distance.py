"""How far a file's outputs are from those of FP32: what steers a search where a metric on few examples is too coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_POWER = 1e-30


def output_divergence(outputs: NDArray[Any], reference: NDArray[Any], *, class_scores: bool) -> NDArray[np.float64]:
    """One figure for each example, 0 where both are equal: shape (N,).

    For scores of classes KL(reference || output) in nats, with p = softmax of the reference:
    sum_c p_c (log p_c - log q_c). For any other output the squared error as a share of the reference's mean power:
    mean (output - reference)^2 / mean reference^2, where the power is the mean over all examples.

    Args:
        outputs, reference: shape (N, ...); scores of classes have shape (N, classes).
    """
    ours, theirs = (array.reshape(len(array), -1).astype(np.float64) for array in (outputs, reference))
    if class_scores:
        log_q, log_p = _log_softmax(ours), _log_softmax(theirs)
        kl: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        return np.maximum(kl, 0.0)
    error: NDArray[np.float64] = np.square(ours - theirs).mean(axis=1)
    return error / max(float(np.square(theirs).mean()), SMALLEST_POWER)


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes; the largest score is taken out first, so that exp cannot overflow."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
