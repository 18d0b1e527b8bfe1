"""Metric `kl`: how far the predicted probabilities move from those of the FP32 file. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Kl(Metric):
    """Negative mean KL(reference || output) in nats: at most 0; FP32 itself has 0.

    It moves with every logit, so a few hundred examples tell candidates apart that top-1 accuracy cannot.
    """

    name = "kl"
    against_reference = True
    percent = False
    class_scores = True

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """-sum_c p_c (log p_c - log q_c) of each example, with p from the FP32 file and q from this one; shape (N,).

        Args:
            outputs: logits, shape (N, classes).
            expected: logits of the FP32 file, shape (N, classes).
        """
        log_q, log_p = _log_softmax(outputs), _log_softmax(expected)
        divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        return -divergence


def _log_softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Over the classes, in double precision; the largest logit is taken out first, so that exp cannot overflow."""
    shifted = logits.reshape(len(logits), -1).astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """KL divergence from FP32."""
    return [Kl]
