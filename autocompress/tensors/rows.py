"""A weight as a matrix with one row for each scale, and back: what a quantizer needs to be written for matrices only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.components import QuantizedTensor
from autocompress.network.graph import Layer


@dataclass(frozen=True)
class ScaleRows:
    """The weights that share a scale, a row each.

    Attributes:
        values: float32, shape (rows, d), contiguous; 0 where the mask removes a weight or a last block is filled up.
        kept: bool, shape of `values`: whether an entry is a weight that stays.
        shape: of the weight with its output channels first.
        axis: of the output channels in the weight.
        scales: shape of the scale that the rows have together: (), (channels,) or (channels, blocks).
        group_size: inputs of a block; None: rows are channels or the whole weight.
    """

    values: Tensor
    kept: Tensor
    shape: tuple[int, ...]
    axis: int
    scales: tuple[int, ...]
    group_size: int | None = None

    @classmethod
    def of(
        cls,
        weight: Tensor,
        layer: Layer,
        mask: Tensor | None = None,
        *,
        per_channel: bool = True,
        group_size: int | None = None,
    ) -> ScaleRows:
        """Cut a weight (float32, the layer's shape) into rows.

        Args:
            mask: bool, the weight's shape; False: removed.
            group_size: inputs that share a scale, for linear layers; other layers ignore it.
        """
        axis, size = layer.channel_axis, group_size if layer.kind == "linear" else None
        stays = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        moved, kept = weight.masked_fill(~stays, 0.0).movedim(axis, 0), stays.movedim(axis, 0)
        shape, width = tuple(moved.shape), math.prod(moved.shape[1:])
        scales: tuple[int, ...] = (shape[0],) if per_channel else ()
        if size is not None:
            scales = (shape[0], math.ceil(width / size))
            moved, kept = (functional.pad(part, (0, scales[1] * size - width)) for part in (moved, kept))
        row = size or (width if per_channel else moved.numel())
        values, kept = (part.reshape(math.prod(scales), row).contiguous() for part in (moved, kept))
        return cls(values, kept, shape, axis, scales, size)

    def quantized(
        self, codes: Tensor, scale: Tensor, bits: int, *, zero_point: Tensor | None = None, codebook: Tensor | None = None
    ) -> QuantizedTensor:
        """Codes in the weight's own shape.

        Args:
            codes: whole numbers within int8, shape of `values`.
            scale: shape (rows, 1).
            zero_point: whole numbers within int8, shape (rows, 1); None: 0.
            codebook: int8, ascending.
        """
        given = torch.zeros_like(scale) if zero_point is None else zero_point
        return QuantizedTensor(
            codes=self._restored(codes.to(torch.int8)),
            scale=scale.to(torch.float32).reshape(self.scales).clone(),
            zero_point=given.to(torch.int8).reshape(self.scales),
            axis=self.axis,
            bits=bits,
            codebook=codebook,
            group_size=self.group_size,
        )

    def _restored(self, codes: Tensor) -> Tensor:
        if self.group_size is not None:
            codes = codes.reshape(self.scales[0], self.scales[1] * self.group_size)[:, : self.shape[1]]
        return codes.reshape(self.shape).movedim(0, self.axis).contiguous()
