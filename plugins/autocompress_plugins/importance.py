"""Pruner `importance`: keep the weights whose removal changes the loss most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Pruner, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats


@dataclass
class Importance(Pruner):
    """First-order Taylor importance: mean of (g w)^2 (Molchanov et al. 2019, arXiv 1906.10771, equation 8).

    g w is the change of the loss, to first order, when the weight becomes 0. It is squared before it is averaged, because
    at a trained minimum the gradients of different examples cancel.
    """

    name = "importance"

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Mean of (g_r w)^2 over the gradient samples g_r, shape of the weight."""
        return (stats.gradient_samples * weight).square().mean(dim=0)  # (R, *weight.shape) -> weight.shape


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """First-order Taylor importance."""
    return [Importance]
