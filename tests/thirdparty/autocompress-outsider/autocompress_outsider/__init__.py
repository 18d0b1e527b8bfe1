"""A plugin for autocompress as a stranger writes it: two components, and only public names."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress import Layer, LayerStats, Pruner, QuantizedTensor, Quantizer, hookimpl

AUTOCOMPRESS_API = "1.0"
"""The plugin API that this was written for."""


@dataclass
class PowerOfTwo(Quantizer):
    """Symmetric 8-bit codes whose scales are powers of two, so that integer-only hardware can rescale by shifting.

    Attributes:
        narrow: leave out the code -128.
    """

    name = "power_of_two"

    narrow: bool = True

    def bit_widths(self, layer: Layer) -> list[int]:
        """8 bits, for every layer."""
        return [8]

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes with one scale for each output channel: the smallest power of two that covers it."""
        axis = stats.layer.channel_axis
        kept = weight if mask is None else weight * mask
        extreme = kept.abs().movedim(axis, 0).flatten(1).amax(1)  # (channels,)
        exponent = (extreme / 127).log2().ceil().clamp_min(-126)  # of the smallest normal float32; log2(0) is -inf
        scale = torch.where(extreme > 0, exponent.exp2(), 1.0)
        shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        codes = (kept / scale.reshape(shape)).round().clamp(-127 if self.narrow else -128, 127).to(torch.int8)
        return QuantizedTensor(codes, scale, torch.zeros_like(scale, dtype=torch.int8), axis, bits)


@dataclass
class RandomKeep(Pruner):
    """Random scores: what any criterion must beat.

    Attributes:
        seed: another seed keeps other weights.
    """

    name = "random_keep"

    seed: int = 0

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Uniform in [0, 1), the same for the same seed and layer."""
        random = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {stats.layer.name}".encode()))
        return torch.rand(weight.shape, generator=random)


@hookimpl
def autocompress_quantizers() -> list[type[Quantizer]]:
    """Called by autocompress when it loads its plugins."""
    return [PowerOfTwo]


@hookimpl
def autocompress_pruners() -> list[type[Pruner]]:
    """Called by autocompress when it loads its plugins."""
    return [RandomKeep]
