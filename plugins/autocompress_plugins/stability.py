"""Pruner `stability`: keep the weights that are important whichever examples are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Pruner, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats

TINY = 1e-38
"""Keeps 0 / 0 at 0 in a layer whose importance is 0 everywhere."""


@dataclass
class Stability(Pruner):
    """Signal-to-noise ratio of the importance: T = mu / (s + eps * m), where unstable weights are cut.

    mu and s are mean and standard deviation of the Taylor importance (g_r w)^2 over gradients g_r of resampled calibration
    batches, m is the layer's mean mu. A weight with high T is useful on every resample and is kept. One with low T owes its
    importance to a few examples: drawn again, the calibration set would judge it otherwise, so cutting it is the bet that
    carries over to unseen data. T is a Wald statistic (compare Ko et al. 2019, "Magnitude and Uncertainty Pruning
    Criterion", for |w|). It has no unit: a weight of small but steady importance ranks above a large unsteady one.

    "Stable" is not "insensitive" here: insensitive weights have mu near 0, hence T near 0, and are cut as well.

    Attributes:
        eps: damping as a fraction of the layer's mean importance. Larger values rank more like `importance`.
    """

    name = "stability"

    eps: float = 1e-3

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """T of each weight, shape of the weight."""
        importance = (stats.gradient_samples * weight).square()  # (R, *weight.shape)
        mean = importance.mean(dim=0)
        spread = (importance - mean).square().mean(dim=0).sqrt()  # 0 for a single sample, which then ranks by its mean
        return mean / (spread + self.eps * mean.mean() + TINY)


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """Stability of the importance."""
    return [Stability]
