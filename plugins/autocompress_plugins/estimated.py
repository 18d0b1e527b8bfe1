"""Quantizer `estimated`: what the grid of each channel covers is estimated from its weights' distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from autocompress import Grid, QuantizedTensor, Quantizer, RowStatistics, ScaleRows, check_bits, divergence, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from autocompress import Layer, LayerStats

METHODS = ("mse", "percentile", "entropy")

MOST_BINS = 2048
"""Bins of the histogram, as in the source of the method."""

WEIGHTS_PER_BIN = 16
"""With fewer the histogram would show single weights and not their distribution."""

BINS_PER_CELL = 8
"""At least so many bins become one code, or there would be nothing to lose."""

CANDIDATES = 128
"""Thresholds that are tried, at equal distances."""


@dataclass
class Estimated(Quantizer):
    """Round to nearest on a symmetric grid whose range is estimated, for each channel.

    `mse`: the scale of least squared error, s* = argmin_s sum (w - s * clip(round(w / s)))^2, over 20 scales from the covering
        one to half of it and then by least squares (`autocompress.Grid.fitted`; compare Nahshan et al. 2019, arXiv 1911.07190).
    `percentile`: the range without the largest |w|: up to their `percentile`-th percentile, interpolated (Li et al. 2019,
        "Fully Quantized Network for Object Detection", section 3.1). Data-free and robust; wants channels of many weights.
    `entropy`: up to the share of the largest |w| for which the Kullback-Leibler divergence between the histogram of the weights
        and its quantized form is least (Migacz 2017, "8-bit Inference with TensorRT"). A channel has too few weights for a
        histogram of its own: all channels, each divided by its largest |w|, share one, and so a share.

    Attributes:
        bits: widths on offer, each 2 to 8.
        percentile: of `percentile`, over 50 to 100.
        group_size: inputs of a linear layer that share a scale; null: all inputs of a channel do.

    Raises:
        ConfigError: a method or a width that there is not, or a percentile that would clip most weights.
    """

    name = "estimated"

    method: str = "mse"
    bits: list[int] = field(default_factory=lambda: [8, 4])
    percentile: float = 99.9
    group_size: int | None = None

    def __post_init__(self) -> None:
        check_bits("quantizer.estimated", *self.bits)
        if self.method not in METHODS:
            raise ConfigError(f"quantizer.estimated.method='{self.method}': expected one of {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"quantizer.estimated.percentile={self.percentile}: expected more than 50, at most 100")
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"quantizer.estimated.group_size={self.group_size}: expected at least 1, or null for none")

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured widths, for every layer."""
        return list(self.bits)

    def blocks(self, layer: Layer) -> bool:
        """Whether `group_size` is set and the layer is a matrix."""
        return self.group_size is not None and layer.kind == "linear"

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes of the weight's shape; scale of shape (channels,) or (channels, blocks), zero point 0."""
        rows = ScaleRows.of(weight, stats.layer, mask, group_size=self.group_size)
        low, high = RowStatistics.of(rows.values).range
        if self.method == "mse":
            grid = Grid.covering(low, high, bits).fitted(rows.values)
        else:
            limit = self._limit(rows, bits)
            grid = Grid.covering(low.maximum(-limit), high.minimum(limit), bits)
        return rows.quantized(grid.codes(rows.values), grid.scale, bits)

    def _limit(self, rows: ScaleRows, bits: int) -> Tensor:
        """The largest |w| to represent in each row, (rows, 1)."""
        if not rows.values.numel():
            return rows.values.new_zeros(len(rows.values), 1)
        if self.method == "percentile":
            return percentiles(rows.values.abs(), rows.kept, self.percentile)
        largest = rows.values.abs().amax(1, keepdim=True)
        relative = (rows.values / largest.where(largest > 0, 1.0))[rows.kept]
        return largest * least_divergent_share(relative, bits)


def percentiles(values: Tensor, kept: Tensor, percent: float) -> Tensor:
    """The percentile of the kept values of each row, interpolated linearly: (rows, d) -> (rows, 1); 0 where none is kept."""
    ordered = values.masked_fill(~kept, torch.inf).sort(dim=1).values
    count = kept.sum(1, keepdim=True)
    position = (count - 1).clamp_min(0).double() * (percent / 100)
    below = position.long()
    above = (below + 1).minimum((count - 1).clamp_min(0))
    found = torch.lerp(ordered.gather(1, below), ordered.gather(1, above), (position - below).float())
    return found.where(count > 0, 0.0)


def least_divergent_share(relative: Tensor, bits: int) -> float:
    """The share of the range [-1, 1] whose quantization to `bits` bits loses least information; of equal ones the largest.

    Args:
        relative: values within [-1, 1], shape (n,).
    """
    cells = 2**bits
    bins = min(MOST_BINS, max(BINS_PER_CELL * cells, len(relative) // WEIGHTS_PER_BIN // 2 * 2))
    counts = np.histogram(relative.numpy(), bins=bins, range=(-1.0, 1.0))[0]
    middle, least = bins // 2, cells // 2
    reaches = np.unique(np.linspace(least, middle, CANDIDATES).round().astype(int))[::-1]
    losses = [divergence(counts, middle - reach, middle + reach, cells) for reach in reaches.tolist()]
    return float(reaches[int(np.argmin(losses))]) / middle if counts.any() else 1.0


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """One quantizer with a choice of estimates."""
    return [Estimated]
