"""Recovery `moments`: mean and spread of every output channel are those of FP32 again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from autocompress import CompressedLayer, QuantizedTensor, Recovery, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from autocompress import Layer, LayerStats

GAIN_LIMITS = (0.5, 2.0)
"""A channel whose spread changed more than this is broken, not rescaled."""

RESOLUTION = 1e-5
"""Share of an output's mean square that a difference of two float32 sums can tell from 0."""

LEAST_VARIANCE = 1e-12
"""A channel that varies less is constant: no gain can repair it."""


@dataclass
class Moments(Recovery):
    """Moment matching in closed form, for every trial; costs milliseconds.

    With input mean m and covariance C, an output channel w has mean w m and variance w C w'. The gain
    sqrt(w C w' / v C v') goes into the scale of the compressed channel v, the difference of the means into the bias: codes
    and bytes stay as they are. (As OBC's `statcorr`, Frantar and Alistarh 2022, arXiv 2208.11580, here without a forward run.)
    """

    name = "moments"

    def repair(self, compressed: CompressedLayer, stats: LayerStats, cuts: Mapping[int, Tensor]) -> CompressedLayer:
        """Move scale and bias of each output channel."""
        return match_moments(compressed, stats, cuts)


def match_moments(compressed: CompressedLayer, stats: LayerStats, cuts: Mapping[int, Tensor]) -> CompressedLayer:
    """The compressed layer with gain and shift of each output channel."""
    layer, dense = stats.layer, compressed.dense()
    kept = cuts.get(layer.channel_axis, torch.arange(layer.channels))
    group = kept // (layer.channels // layer.groups)
    mean = stats.input_mean  # (groups, d)
    target, now = _rows(stats.weight, layer)[kept], _rows(_widened(dense, layer, cuts), layer)  # (channels, d) each
    wanted, spread = _variance(target, stats, group), _variance(now, stats, group)
    gain = torch.where((wanted > 0) & (spread > 0), wanted / spread.clamp_min(1e-30), 1.0).sqrt().clamp(*GAIN_LIMITS)
    shift = ((target - gain[:, None] * now) * mean[group]).sum(1)
    bias = compressed.bias if compressed.bias is not None else torch.zeros_like(shift)
    addable = compressed.bias is not None or layer.kind not in {"linear", "embedding"}  # these take one only where they have it
    return replace(
        compressed, weight=_scaled(compressed.weight, gain, layer.channel_axis), bias=bias + shift if addable else None
    )


def _rows(weight: Tensor, layer: Layer) -> Tensor:
    """One row for each output channel: (channels, d)."""
    return weight.movedim(layer.channel_axis, 0).flatten(1)


def _widened(weight: Tensor, layer: Layer, cuts: Mapping[int, Tensor]) -> Tensor:
    """The weight with zeros where input channels were removed."""
    axis = 1 - layer.channel_axis
    if axis not in cuts:
        return weight
    shape = list(weight.shape)
    shape[axis] = layer.shape[axis]
    return torch.zeros(shape).index_copy_(axis, cuts[axis], weight)


def _variance(rows: Tensor, stats: LayerStats, group: Tensor) -> Tensor:
    """Of the output of each row (channels, d), shape (channels,); 0 where it drowns in the rounding of the squared mean."""
    mean = stats.input_mean
    variance = _quadratic(rows, stats.input_second_moment - mean[:, :, None] * mean[:, None, :], group)
    power = _quadratic(rows, stats.input_second_moment, group)
    return torch.where((variance > RESOLUTION * power) & (variance > LEAST_VARIANCE), variance, 0.0)


def _quadratic(rows: Tensor, covariance: Tensor, group: Tensor) -> Tensor:
    """The value w C w' for each row w (channels, d) with the matrix C of its group (groups, d, d): (channels,)."""
    if len(covariance) == 1:
        return ((rows @ covariance[0]) * rows).sum(1)
    return torch.einsum("cd,cde,ce->c", rows, covariance[group], rows)


def _scaled(weight: QuantizedTensor | Tensor, gain: Tensor, axis: int) -> QuantizedTensor | Tensor:
    """Multiply each output channel, in the scale where there is one."""
    if isinstance(weight, QuantizedTensor):
        if weight.scale.dim() == 2:
            return replace(weight, scale=weight.scale * gain[:, None])
        return replace(weight, scale=weight.scale * gain, zero_point=weight.zero_point.expand_as(gain), axis=axis)
    return weight * gain.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])


@hookimpl
def autocompress_recoveries() -> list[type[Recovery]]:
    """Moment matching."""
    return [Moments]
