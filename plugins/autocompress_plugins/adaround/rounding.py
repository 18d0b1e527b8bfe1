"""The variable that decides between two neighbouring codes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress import CompressedLayer, QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

LOW, HIGH = -0.1, 1.1
"""The sigmoid is stretched to this range before it is clipped, so that its gradient does not vanish at 0 and 1
(gamma and zeta of Louizos et al. 2018, arXiv 1712.01312, section 2.2)."""

SHARPEST, SOFTEST = 20.0, 2.0
"""Beta at the start and at the end."""


class SoftRounding(nn.Module):
    """Parametrization of a weight: each value lies between its code and the nearest neighbour of it.

    It starts at the weight before rounding, no farther than half a step from its code: at FP32 where the code was rounded to
    nearest, and nowhere more than one step away where another rounding or a training chose the code.

    Args:
        stored: weight in codes, without a codebook.
        weight: float32, before it was rounded; shape of the codes.
        flip: from the file's orientation to the module's.
    """

    def __init__(self, stored: CompressedLayer, weight: Tensor, flip: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        assert isinstance(stored.weight, QuantizedTensor)
        self._stored, self._coded, self._flip = stored, stored.weight, flip
        self._dense, self._step = self._coded.dequantize(), _step(self._coded)
        away = ((weight - self._dense) / self._step).clamp(-0.5, 0.5)
        self._down = (away < 0).float()
        self._movable = _movable(self._coded, self._down, stored.mask)
        up = (away + self._down).clamp(1e-4, 1 - 1e-4)
        self.variable = nn.Parameter(-torch.log((HIGH - LOW) / (up - LOW) - 1))  # h(V) = up

    def forward(self, _: Tensor) -> Tensor:
        """The weight in the module's orientation."""
        return self._flip(self.weight())

    def weight(self) -> Tensor:
        """The weight between two codes, shape of the codes."""
        return self._dense + self._moved(self._up()) * self._step

    def undecided(self, done: float) -> Tensor:
        """The mean of `1 - |2 h - 1|^beta` over the weights that can move, a scalar; 0 when each is decided.

        Args:
            done: share of the annealing that is over.
        """
        beta = SOFTEST + (SHARPEST - SOFTEST) * (1 + math.cos(math.pi * done)) / 2
        between = (2 * self._up() - 1).abs().pow(beta)
        return ((1 - between) * self._movable).sum() / self._movable.sum().clamp_min(1)

    @torch.no_grad()
    def decided(self) -> QuantizedTensor:
        """The codes that are nearest to where the variable is; scale and zero point as before."""
        moves = self._moved((self._up() >= 0.5).float())
        return replace(self._coded, codes=(self._coded.codes + moves).to(self._coded.codes.dtype))

    def _up(self) -> Tensor:
        """h(V), equation 23."""
        return (torch.sigmoid(self.variable) * (HIGH - LOW) + LOW).clamp(0, 1)

    def _moved(self, up: Tensor) -> Tensor:
        """Steps from the code, -1 to 1."""
        return self._movable * (up - self._down)


def _step(coded: QuantizedTensor) -> Tensor:
    """The scale of each weight, shape of the codes."""
    return replace(coded, codes=torch.ones_like(coded.codes), zero_point=torch.zeros_like(coded.zero_point)).dequantize()


def _movable(coded: QuantizedTensor, down: Tensor, mask: Tensor | None) -> Tensor:
    """1 where the neighbouring code exists and the weight was not removed, else 0."""
    neighbour = coded.codes + torch.where(down > 0, -1, 1)
    exists = (neighbour >= -(2 ** (coded.bits - 1))) & (neighbour < 2 ** (coded.bits - 1))
    movable: Tensor = exists if mask is None else exists & mask
    return movable.float()
