"""The grid of an activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ACTIVATION_BITS = 8

WIDER_STEPS = 1.5
"""A grid is not centred where its steps would become so much wider: 3.5 dB, a little more than half a bit."""


@dataclass(frozen=True)
class Range:
    """A grid of unsigned codes of 8 or 16 bits: `value = (code - zero_point) * scale`; 0 lies on it exactly.

    Attributes:
        signed: the zero point is the middle one, and a file has the codes less that.
    """

    scale: float
    zero_point: int
    bits: int = ACTIVATION_BITS
    signed: bool = False

    @property
    def most(self) -> int:
        """The largest code."""
        return int(2**self.bits) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the smallest and of the largest code."""
        return -self.zero_point * self.scale, (self.most - self.zero_point) * self.scale

    def centred(self) -> Range:
        """Signed codes around 0 for the same values; this one where none is negative, or the steps would become too wide."""
        half = int(2 ** (self.bits - 1))
        wider = max(self.zero_point / half, (self.most - self.zero_point) / (half - 1))
        if self.zero_point == 0 or wider > WIDER_STEPS:
            return self
        return Range(float(np.float32(self.scale * wider)), half, self.bits, signed=True)

    @classmethod
    def covering(cls, grids: Sequence[Range]) -> Range:
        """The grid of the same bits that covers all of these."""
        if len(grids) == 1:
            return grids[0]
        lows, highs = zip(*(grid.ends for grid in grids), strict=True)
        return cls.of(min(lows), max(highs), grids[0].bits)

    @classmethod
    def of(cls, low: float, high: float, bits: int = ACTIVATION_BITS) -> Range:
        """The grid that covers [min(low, 0), max(high, 0)]."""
        low, high = min(low, 0.0), max(high, 0.0)
        levels = 2**bits - 1
        scale = float(np.float32((high - low) / levels)) or 1.0
        return cls(scale, min(levels, max(0, round(-low / scale))), bits)
