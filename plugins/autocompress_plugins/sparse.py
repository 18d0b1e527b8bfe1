"""Pruner `sparse`: keep the largest weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Pruner, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress import LayerStats


@dataclass
class Sparse(Pruner):
    """Magnitude |w| (Han et al. 2015, arXiv 1506.02626). Needs no data."""

    name = "sparse"

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """|w|, shape of the weight."""
        return weight.abs()


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """Magnitude."""
    return [Sparse]
