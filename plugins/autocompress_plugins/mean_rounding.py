"""Quantizer `mean_rounding`: each weight goes to the nearest mean of its cell, on even cells or on learned ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from autocompress import (
    Grid,
    QuantizedTensor,
    Quantizer,
    RowStatistics,
    ScaleRows,
    check_bits,
    hookimpl,
    kernel_levels,
    lloyd_max,
    nearest,
    positive_scale,
)
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from autocompress import Layer, LayerStats

CELLS = ("uniform", "kmeans")

SHRINKS = [1 - step / 38 for step in range(20)]
"""Scales of even cells that are tried, as fractions of the one that covers the channel."""

LARGEST = 127
"""Of the numbers that an INT8 kernel computes with."""

ROUNDS = 3
"""How often codebook and scales are chosen for each other in turn; a fourth round gains less than one part in a hundred."""


@dataclass
class MeanRounding(Quantizer):
    """Round to the mean of a cell.

    `uniform`: code = round((w - m) / s) with the mean m of the channel, so that the codes are spread evenly around where the
        weights are. A code decodes to (code - z) * s with the zero point z = round(-m / s), the whole number nearest to what
        would put code 0 at m: the grid moves by at most half a step, and 0 stays on it. The scale s is the one of least squared
        error among 20. Pays where a channel's weights have one sign; with m = 0 it is `int4`.
    `kmeans`: the cells are those of one-dimensional k-means over the layer's weights, each divided by its channel's scale
        (Lloyd 1982; Max 1960; as a codebook for weights: Han et al. 2016, "Deep Compression", arXiv 1510.00149, section 3). The
        means are whole numbers within a byte, one of them 0, so that INT8 kernels compute with them; a code names one. Then
        each channel's scale is refitted by least squares, s = <w, q> / <q, q>, and so on in turn.

    Attributes:
        cells: `uniform` or `kmeans`.
        bits: widths on offer, each 2 to 8. A learned codebook is offered below 8 bits, where it is not all of a byte's numbers.

    Raises:
        ConfigError: cells or a width that there are not.
    """

    name = "mean_rounding"

    cells: str = "uniform"
    bits: list[int] = field(default_factory=lambda: [8, 4])

    def __post_init__(self) -> None:
        if self.cells not in CELLS:
            raise ConfigError(f"quantizer.mean_rounding.cells='{self.cells}': expected one of {', '.join(CELLS)}")
        check_bits("quantizer.mean_rounding", *self.bits)

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured widths, for every layer."""
        return [bits for bits in self.bits if self.cells == "uniform" or bits < 8]

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes of the weight's shape, levels or indices into the codebook; scale of shape (channels,)."""
        rows = ScaleRows.of(weight, stats.layer, mask)
        if self.cells == "kmeans":
            return _learned(rows, bits)
        grid = _centred(rows, bits)
        return rows.quantized(grid.codes(rows.values), grid.scale, bits, zero_point=grid.zero_point)


def _centred(rows: ScaleRows, bits: int) -> Grid:
    """The grid around each row's mean with the scale of least squared error."""
    figures = RowStatistics.of(rows.values, rows.kept)
    most = 2 ** (bits - 1) - 1
    reach = (figures.maximum - figures.mean).maximum(figures.mean - figures.minimum)
    low, high = figures.range
    whole = high.maximum(-low)
    least = positive_scale(whole / LARGEST)  # a level, code - z, is what an INT8 kernel multiplies
    scale = (reach / most).maximum((high - low) / (2 * most + 1)).maximum(least)
    trials = [_around(figures.mean, (scale * shrink).maximum(least), most) for shrink in SHRINKS]
    errors = torch.stack([grid.error(rows.values) for grid in trials])  # (trials, rows, 1)
    best = torch.stack([grid.scale for grid in trials]).gather(0, errors.argmin(0, keepdim=True))[0]
    return _around(figures.mean, best, most)


def _around(mean: Tensor, scale: Tensor, most: int) -> Grid:
    return Grid(scale, (-mean / scale).round().clamp(-most - 1, most), -most - 1, most)


def _learned(rows: ScaleRows, bits: int) -> QuantizedTensor:
    """Codebook and scales in turn, each the best for the other."""
    scale = positive_scale(_largest(rows.values) / LARGEST)
    levels = torch.zeros(1)
    for _ in range(ROUNDS if rows.kept.any() else 0):
        levels = kernel_levels(lloyd_max(*_weighted(rows, scale), 2**bits))
        scale = _refitted(rows.values, scale, levels)
    codes = nearest(rows.values / scale, levels)
    codes = codes.where(rows.kept, int(levels.abs().argmin()))
    return rows.quantized(codes, scale, bits, codebook=levels.to(torch.int8))


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1, keepdim=True) if rows.numel() else rows.new_zeros(len(rows), 1)


def _weighted(rows: ScaleRows, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights in units of their row's scale, and what a squared error there is worth: two of shape (n,)."""
    worth = (scale / scale.max()).square().expand_as(rows.values)
    return (rows.values / scale)[rows.kept], worth[rows.kept]


def _refitted(rows: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """The scale that is best for the present cells, of which it is also the best multiple: (rows, 1)."""
    steps = levels[nearest(rows / scale, levels)]
    relative = (steps * (rows / scale)).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
    return scale * relative.where(relative > 0, 1.0)  # 0 / 0 where every step is 0


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """One quantizer with a choice of cells."""
    return [MeanRounding]
