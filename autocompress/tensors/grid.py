"""Integer grids: statistics of a weight, the range to cover, and the way to codes and back (Jacob et al. 2018).

For a row of weights w, quantized to b bits (arXiv 1712.05877, equation 1 and section 3):

    statistics   minimum = min w, maximum = max w, mean = sum w / n
    range        low = min(minimum, 0), high = max(maximum, 0): zero lies in every range, for padding and for removed weights
    scale        s = (high - low) / (most - least), for the codes least .. most; symmetric: s = max(low / least, high / most)
    zero point   z = round(least - low / s), a code itself, so that it decodes to exactly 0; symmetric: z = 0
    quantize     code = clip(round(w / s) + z, least, most), halves to the even code as in ONNX
    dequantize   w' = (code - z) * s

Worked example: [0.5, 1, 1.5, 2] on an unsigned 8-bit grid has low = 0, high = 2, s = 2 / 255 and z = 0, and gives the codes
64, 128, 191, 255. A grid that starts at 0.5 instead would have s = 1.5 / 255 and, for 0 to decode to 0, z = -0.5 / s = -85.
That is no code of an unsigned byte, and the zero point of ONNX's QuantizeLinear has the type of the codes: the grid cannot be
written down. Nor could it be used: a convolution pads with zeros, which this grid would pad with 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autocompress.errors import ConfigError

SHRINKS = [1 - step / 38 for step in range(1, 20)]
"""Scales that are tried, as fractions of the one that covers the whole range; the last is one half."""

REFINEMENTS = 3
"""Least-squares rounds after the grid. 20 scales with them end below 160 scales without, at a fifth of the time."""

VANISHING = 2.0**-24
"""Float32's relative precision: a scale this far below the layer's mean belongs to a channel without weights."""


def check_bits(owner: str, *widths: int, most: int = 8) -> None:
    """Refuse widths that int8 codes cannot have.

    Raises:
        ConfigError: a width is not from 2 to `most`, or comes twice.
    """
    for bits in widths:
        if not 2 <= bits <= most:
            raise ConfigError(f"{owner}: {bits} bits; expected 2 to {most}, because codes are stored as int8")
    if len(set(widths)) < len(widths) or not widths:
        raise ConfigError(f"{owner}.bits={list(widths)}: expected one width or several different ones, for example [8,4]")


@dataclass(frozen=True)
class RowStatistics:
    """Figures of rows of weights, shape (rows, 1) each; 0 for a row without entries."""

    minimum: Tensor
    maximum: Tensor
    mean: Tensor

    @classmethod
    def of(cls, rows: Tensor, kept: Tensor | None = None) -> RowStatistics:
        """Minimum, maximum and mean of each row of (rows, d).

        Args:
            kept: bool, shape of `rows`: entries that count.
        """
        if not rows.numel():
            empty = rows.new_zeros(len(rows), 1)
            return cls(empty, empty, empty)
        stays = torch.ones_like(rows, dtype=torch.bool) if kept is None else kept
        count = stays.sum(1, keepdim=True)
        low = rows.masked_fill(~stays, torch.inf).amin(1, keepdim=True)
        high = rows.masked_fill(~stays, -torch.inf).amax(1, keepdim=True)
        mean = rows.masked_fill(~stays, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
        return cls(low.where(count > 0, 0.0), high.where(count > 0, 0.0), mean)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value that a grid has to cover: the extremes, widened to include 0."""
        return self.minimum.clamp(max=0), self.maximum.clamp(min=0)


@dataclass(frozen=True)
class Grid:
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

    @classmethod
    def covering(
        cls, low: Tensor, high: Tensor, bits: int, *, symmetric: bool = True, narrow: bool = False, signed: bool = True
    ) -> Grid:
        """The finest grid that clips nothing in [low, high].

        Codes are signed bytes whatever `signed` is: an unsigned level l is stored as l - 2^(b-1), its zero point with it.

        Args:
            low: shape (rows, 1), at most 0; computed with in float64, so that a weight halfway between two codes is seen to be
                there.
            high: shape (rows, 1), at least 0.
            symmetric: the zero point is fixed: at level 0. Signed, that is the middle of the grid.
            narrow: leave out the lowest code.
            signed: levels are -2^(b-1) .. 2^(b-1) - 1, else 0 .. 2^b - 1. With a fixed zero point an unsigned grid holds no
                negative value, which clips to 0; with a free one both are the same grid under other names.
        """
        low, high = low.double(), high.double()
        most = 2 ** (bits - 1) - 1
        least = -most if narrow else -most - 1
        if symmetric and signed:
            scale = positive_scale((low / least).maximum(high / most))
            return cls(scale, torch.zeros_like(scale), least, most)
        low = torch.zeros_like(low) if symmetric else low
        scale = positive_scale((high - low) / (most - least))
        return cls(scale, (least - low / scale).round().clamp(least, most), least, most)

    def steps(self, rows: Tensor) -> Tensor:
        """Nearest representable values in units of the scale, (rows, d); ties to even as in ONNX."""
        return (rows / self.scale).round_().clamp_(self.least - self.zero_point, self.most - self.zero_point)

    def codes(self, rows: Tensor) -> Tensor:
        """Codes of the nearest representable values, (rows, d)."""
        return self.steps(rows) + self.zero_point

    def values(self, codes: Tensor) -> Tensor:
        """What codes (rows, d) stand for."""
        return (codes - self.zero_point) * self.scale

    def error(self, rows: Tensor) -> Tensor:
        """Sum of the squared error of each row, (rows, 1)."""
        return self.steps(rows).mul_(self.scale).sub_(rows).square_().sum(1, keepdim=True)

    def fitted(self, rows: Tensor) -> Grid:
        """The same codes with the scale of each row that loses least, clipping outliers where that pays.

        s* = argmin_s sum (w - s * clip(round(w / s)))^2, over `SHRINKS` and then by least squares.
        """
        best, error = self, self.error(rows)
        for shrink in SHRINKS:
            trial = replace(self, scale=self.scale * shrink)
            trial_error = trial.error(rows)
            best = replace(best, scale=trial.scale.where(trial_error < error, best.scale))
            error = error.minimum(trial_error)
        for _ in range(REFINEMENTS):
            best = best._refined(rows)
        return best

    def _refined(self, rows: Tensor) -> Grid:
        """The scale that is best for the present steps q: s = <w, q> / <q, q>. Rounding again can only lower the error."""
        steps = self.steps(rows)
        scale = (steps * rows).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True)
        return replace(self, scale=scale.where(scale > 0, self.scale))  # 0 / 0 where every step is 0


def positive_scale(scale: Tensor) -> Tensor:
    """Give a row without weights the mean scale, (rows, 1): its bias, stored in units of the scale, must stay in range.

    Where that is less than a normal float32, in which it is stored, there are no weights to speak of: 1.
    """
    typical = scale.mean()
    used = scale.where(scale > VANISHING * typical, typical)
    return used.where(used >= torch.finfo(torch.float32).tiny, 1.0)
