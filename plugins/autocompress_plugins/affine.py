"""Quantizers `int8` and `int4`: an affine integer grid, of its own for each output channel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from autocompress import QuantizedTensor, Quantizer, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from autocompress import Layer, LayerStats

SHRINKS = [1 - step / 38 for step in range(1, 20)]
"""Scales that are tried, as fractions of the one that covers the whole range; the last is one half."""

REFINEMENTS = 3
"""Least-squares rounds after the grid. 20 scales with them end below 160 scales without, at a fifth of the time."""

VANISHING = 2.0**-24
"""Float32's relative precision: a scale this far below the layer's mean belongs to a channel without weights."""


@dataclass(frozen=True)
class _Grid:
    """Representable values of each row: `(code - zero_point) * scale` for codes from `least` to `most`.

    Attributes:
        scale: positive, shape (rows, 1).
        zero_point: whole numbers within the codes, so that 0 is always representable; shape (rows, 1).
        least, most: smallest and largest code.
    """

    scale: Tensor
    zero_point: Tensor
    least: int
    most: int

    def steps(self, rows: Tensor) -> Tensor:
        """Nearest representable values in units of the scale, (rows, d); ties to even as in ONNX."""
        return (rows / self.scale).round_().clamp_(self.least - self.zero_point, self.most - self.zero_point)

    def error(self, rows: Tensor) -> Tensor:
        """Sum of the squared error of each row, (rows, 1)."""
        return self.steps(rows).mul_(self.scale).sub_(rows).square_().sum(1, keepdim=True)

    def fitted(self, rows: Tensor) -> _Grid:
        """The same codes with the scale of each row that loses least, clipping outliers where that pays."""
        best, error = self, self.error(rows)
        for shrink in SHRINKS:
            trial = replace(self, scale=self.scale * shrink)
            trial_error = trial.error(rows)
            best = replace(best, scale=trial.scale.where(trial_error < error, best.scale))
            error = error.minimum(trial_error)
        for _ in range(REFINEMENTS):
            best = best._refined(rows)
        return best

    def _refined(self, rows: Tensor) -> _Grid:
        """The scale that is best for the present steps q: s = <w, q> / <q, q>. Rounding again can only lower the error."""
        steps = self.steps(rows)
        scale = (steps * rows).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
        return replace(self, scale=scale.where(scale > 0, self.scale))  # 0 / 0 where every step is 0


@dataclass
class Affine(Quantizer):
    """Round to nearest on `value = (code - zero_point) * scale` (Jacob et al. 2018, arXiv 1712.05877, equation 1).

    Abstract: `Int8` and `Int4` name it and preset the fields.

    Attributes:
        bits: 2 to 8.
        per_channel: one scale for each output channel, not one for the weight.
        symmetric: zero point 0, the only one for which runtimes have fast kernels.
        narrow: leave out the most negative code. With it (the default keeps it) a channel whose extreme is negative gets a
            finer scale: by one part in eight at 4 bits.
        mse: choose each scale by squared error and not to cover the range; pays at few bits.
    """

    bits: int
    per_channel: bool = True
    symmetric: bool = True
    narrow: bool = False
    mse: bool = False

    def __post_init__(self) -> None:
        _check(self.name, self.bits)

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured width, for every layer."""
        return [self.bits]

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes of the weight's shape; scale and zero point of shape (channels,), or () when not `per_channel`."""
        _check(self.name, bits)
        axis = stats.layer.channel_axis
        moved = (weight if mask is None else weight.masked_fill(~mask, 0.0)).movedim(axis, 0)
        count = len(moved) if self.per_channel else 1
        rows = moved.reshape(count, moved.numel() // max(count, 1)).contiguous()  # sums must not depend on strides
        grid = self._covering(rows, bits)
        grid = grid.fitted(rows) if self.mse else grid
        codes = (grid.steps(rows) + grid.zero_point).char().reshape(moved.shape).movedim(0, axis).contiguous()
        shape = (count,) if self.per_channel else ()
        return QuantizedTensor(codes, grid.scale.reshape(shape), grid.zero_point.char().reshape(shape), axis, bits)

    def _covering(self, rows: Tensor, bits: int) -> _Grid:
        """The finest grid that clips nothing."""
        most = 2 ** (bits - 1) - 1
        least = -most if self.narrow else -most - 1
        low, high = _extremes(rows)
        if self.symmetric:
            scale = _positive((low / least).maximum(high / most))
            return _Grid(scale, scale.new_zeros(scale.shape), least, most)
        scale = _positive((high - low) / (most - least))
        return _Grid(scale, (least - low / scale).round().clamp(least, most), least, most)


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


def _check(name: str, bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ConfigError(f"quantizer.{name}: {bits} bits; expected 2 to 8, because codes are stored as int8")


def _extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each row, widened to include 0: (rows, 1) each."""
    if not rows.numel():
        return rows.new_zeros(len(rows), 1), rows.new_zeros(len(rows), 1)
    return rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)


def _positive(scale: Tensor) -> Tensor:
    """Give a channel without weights the mean scale: its bias, stored in units of the scale, must stay in range."""
    typical = scale.mean()
    return scale.where(scale > VANISHING * typical, typical.where(typical > 0, 1.0))


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """Both presets."""
    return [Int8, Int4]
