"""The ways in which a target can store a weight and compute with it, and a weight in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.components import Capabilities, QuantizedTensor
from autocompress.network.graph import Layer
from autocompress.policy import Activation
from autocompress.tensors.grid import Grid, RowStatistics
from autocompress.tensors.rows import ScaleRows
from autocompress.tensors.sparsity import largest

SPARSITY = 0.7
"""Share of the weights that is removed where sparse codes are tried."""

BLOCK = 32
"""Inputs that share a scale where blocks are tried."""

CODEBOOK_BITS = 4
LEVELS = 15


@dataclass(frozen=True)
class Encoding:
    """How a weight is stored and how its layer computes.

    Attributes:
        name: as `Lowered.encodings` has it: int8, int4, codebook4, blocks-int4, sparse-int8 and so on.
        bits: of a stored code.
    """

    name: str
    bits: int
    mode: Activation

    @property
    def is_sparse(self) -> bool:
        """Whether removed weights take a bit each."""
        return self.name.startswith("sparse-")


def encodings(kind: str, capabilities: Capabilities) -> Iterator[Encoding]:
    """All that a target says it can do with a kind of layer, the dense ones of most bits first."""
    containers = sorted(capabilities.containers.get(kind, ()), reverse=True)
    for mode in capabilities.modes(kind):
        for bits in containers:
            yield Encoding(f"int{bits}", bits, mode)
            if capabilities.packed_sparse:
                yield Encoding(f"sparse-int{bits}", bits, mode)
            if capabilities.codebooks and bits == CODEBOOK_BITS:
                yield Encoding(f"codebook{bits}", bits, mode)
    if kind in capabilities.group_sizes:
        yield from (Encoding(f"blocks-int{bits}", bits, "float") for bits in containers)


def encoded(weight: Tensor, layer: Layer, encoding: Encoding) -> QuantizedTensor:
    """A weight, float32 of the layer's shape, in an encoding."""
    mask = largest(weight.abs(), SPARSITY) if encoding.is_sparse else None
    blocks = BLOCK if encoding.name.startswith("blocks-") else None
    rows = ScaleRows.of(weight, layer, mask, group_size=blocks)
    low, high = RowStatistics.of(rows.values).range
    if "codebook" in encoding.name:
        return _named(rows, low.abs().maximum(high), encoding.bits)
    grid = Grid.covering(low, high, encoding.bits)
    return rows.quantized(grid.codes(rows.values), grid.scale, encoding.bits)


def _named(rows: ScaleRows, largest_weight: Tensor, bits: int) -> QuantizedTensor:
    table = torch.linspace(-127, 127, LEVELS).round()
    scale = largest_weight.clamp_min(1e-12) / 127
    middles = (table[1:] + table[:-1]) / 2
    return rows.quantized(torch.bucketize(rows.values / scale, middles), scale, bits, codebook=table.to(torch.int8))
