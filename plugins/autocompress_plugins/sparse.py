"""Pruner `sparse`: keep the largest weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Pruner, compensate, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats


@dataclass
class Sparse(Pruner):
    """Magnitude |w| (Han et al. 2015, arXiv 1506.02626). The scores need no data.

    Attributes:
        compensate: let the weights that stay take over what the removed ones computed (`autocompress.compensate`).
    """

    name = "sparse"

    compensate: bool = True

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """|w|, shape of the weight."""
        return weight.abs()

    def update(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """The weights that are left."""
        return compensate(weight, mask, stats) if self.compensate else weight * mask


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """Magnitude."""
    return [Sparse]
