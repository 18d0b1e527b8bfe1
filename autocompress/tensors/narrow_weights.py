"""Weights of 7 bits, for devices whose integer kernels add pairs of products in 16 bits and lose what does not fit.

Without the instructions for it (VNNI on x86) `vpmaddubsw` multiplies codes 0 .. 255 of activations by codes -128 .. 127 of
weights and adds two neighbouring products in 16 bits: 255 * 127 * 2 = 64,770 becomes 32,767. No pair of codes within -64 .. 64
reaches the limit: 255 * 64 * 2 = 32,640.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autocompress.components import Components, QuantizedTensor, Quantizer

if TYPE_CHECKING:
    from autocompress.network.graph import Layer
    from autocompress.tensors.stats import LayerStats

NARROW_BITS = 7
LARGEST = 63
"""Largest code, a step below the one that is still safe, for zero points that are rounded."""


@dataclass
class NarrowWeights(Quantizer):
    """Another quantizer, with at most 7 bits for some kinds of layers.

    Attributes:
        quantizer: the configured one.
        kinds: layer kinds whose kernels lose sums.
    """

    quantizer: Quantizer
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.quantizer.name  # type: ignore[misc]

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """The configured widths, cut to 7 bits."""
        widths = self.quantizer.bit_widths(layer)
        return list(dict.fromkeys(min(bits, NARROW_BITS) for bits in widths)) if self._applies(layer) else widths

    def blocks(self, layer: Layer) -> bool:
        """As the configured one."""
        return self.quantizer.blocks(layer)

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """What the configured one gives, its codes and codebooks rounded again where they are too large for a kernel."""
        on_offer = self.quantizer.bit_widths(stats.layer)
        asked = bits if bits in on_offer else min((width for width in on_offer if width > bits), default=bits)
        found = self.quantizer.quantize(weight, asked, stats, mask)
        stays = weight if mask is None else weight * mask
        return narrowed(found, stays) if self._applies(stats.layer) else found

    def _applies(self, layer: Layer) -> bool:
        return layer.kind in self.kinds and not self.blocks(layer)


def narrowed(given: QuantizedTensor, weight: Tensor) -> QuantizedTensor:
    """The same with numbers that no kernel loses: unchanged where they are small, else on a coarser grid around 0.

    Args:
        weight: what was quantized, float32; it is rounded to the new grid directly.
    """
    numbers = given.numbers
    if not numbers.numel() or int(numbers.abs().max()) <= LARGEST + 1:
        return given
    if given.codebook is not None:
        return _with_smaller_levels(given, int(numbers.abs().max()))
    factor = (_largest_of_rows(numbers, given) / LARGEST).clamp_min(1.0)
    grid = replace(given, scale=given.scale * factor, zero_point=torch.zeros_like(given.zero_point), bits=NARROW_BITS)
    return grid.rounded(weight)


def _largest_of_rows(numbers: Tensor, given: QuantizedTensor) -> Tensor:
    """Largest magnitude for each scale, float32, shape of the scale."""
    if not given.scale.dim():
        return numbers.abs().max().float()
    return numbers.abs().movedim(given.axis, 0).flatten(1).amax(1).float()


def _with_smaller_levels(given: QuantizedTensor, most: int) -> QuantizedTensor:
    assert given.codebook is not None
    factor = most / LARGEST

    def smaller(part: Tensor) -> Tensor:
        return (part.float() / factor).round().to(torch.int8)

    return replace(given, codebook=smaller(given.codebook), zero_point=smaller(given.zero_point), scale=given.scale * factor)


def with_narrow_weights(components: Components, kinds: Collection[str]) -> Components:
    """The components with every quantizer limited for these kinds of layers; the same where there are none."""
    if not kinds:
        return components
    limited = {name: NarrowWeights(quantizer, sorted(kinds)) for name, quantizer in components.quantizers.items()}
    return replace(components, quantizers=limited)
