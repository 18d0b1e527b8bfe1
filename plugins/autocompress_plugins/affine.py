"""Quantizers `int8` and `int4`: an affine integer grid, of its own for each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from autocompress import Grid, QuantizedTensor, Quantizer, RowStatistics, ScaleRows, check_bits, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from autocompress import Layer, LayerStats


@dataclass
class Affine(Quantizer):
    """Round to nearest on `value = (code - zero_point) * scale`; the formulas are those of `autocompress.tensors.grid`.

    Abstract: `Int8` and `Int4` name it and preset the fields.

    Attributes:
        bits: 2 to 8.
        per_channel: one scale for each output channel, not one for the weight.
        symmetric: the zero point is fixed at level 0. Runtimes have fast kernels for a signed grid with zero point 0 only.
        narrow: leave out the lowest code. With it (the default keeps it) a channel whose extreme is negative gets a
            finer scale: by one part in eight at 4 bits.
        signed: levels -2^(b-1) .. 2^(b-1) - 1, else 0 .. 2^b - 1, stored as signed codes with the zero point moved along. An
            unsigned grid with a fixed zero point is twice as fine and holds no negative weight.
        mse: choose each scale by squared error and not to cover the range; pays at few bits.
        group_size: inputs of a linear layer that share a scale; null: all inputs of a channel do. Such layers compute in float.

    Raises:
        ConfigError: the width is not 2 to 8, or the group is empty.
    """

    bits: int
    per_channel: bool = True
    symmetric: bool = True
    narrow: bool = False
    signed: bool = True
    mse: bool = False
    group_size: int | None = None

    def __post_init__(self) -> None:
        check_bits(f"quantizer.{self.name}", self.bits)
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"quantizer.{self.name}.group_size={self.group_size}: expected at least 1, or null for none")

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured width, for every layer."""
        return [self.bits]

    def blocks(self, layer: Layer) -> bool:
        """Whether `group_size` is set and the layer is a matrix."""
        return self.group_size is not None and layer.kind == "linear"

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes of the weight's shape; scale and zero point of shape (), (channels,) or (channels, blocks)."""
        check_bits(f"quantizer.{self.name}", bits)
        rows = ScaleRows.of(weight, stats.layer, mask, per_channel=self.per_channel, group_size=self.group_size)
        low, high = RowStatistics.of(rows.values).range
        grid = Grid.covering(low, high, bits, symmetric=self.symmetric, narrow=self.narrow, signed=self.signed)
        grid = grid.fitted(rows.values) if self.mse else grid
        return rows.quantized(grid.codes(rows.values), grid.scale, bits, zero_point=grid.zero_point)


@final
@dataclass
class Int8(Affine):
    """8-bit codes that cover the range of each channel."""

    name = "int8"

    bits: int = 8


@final
@dataclass
class Int4(Affine):
    """4-bit codes with the scale of least squared error for each channel."""

    name = "int4"

    bits: int = 4
    mse: bool = True


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """Both presets."""
    return [Int8, Int4]
