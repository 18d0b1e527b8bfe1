"""What calibration data tells about a layer. Each statistic is computed once, when a component first asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from autocompress.network.graph import Layer


class StatsSource(Protocol):
    """Where the statistics come from."""

    def gradient_samples(self, layer: Layer) -> Tensor:
        """Gradients of the loss with respect to the weight under resampled calibration batches: (R, *layer.shape)."""

    def gradient_examples(self) -> int:
        """Examples that each gradient sample is the mean over."""

    def input_mean(self, layer: Layer) -> Tensor:
        """Mean of the input patches: (groups, d), where d is the number of inputs of one output."""

    def input_second_moment(self, layer: Layer) -> Tensor:
        """Mean of x x^T over the input patches: (groups, d, d)."""

    def input_shrinkage(self, layer: Layer) -> Tensor:
        """How far the input covariance must move towards a multiple of the identity, 0 to 1: (groups,)."""


def slice_axes(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    """Keep only the given indices along each axis."""
    for axis, kept in cuts.items():
        tensor = tensor.index_select(axis, kept)
    return tensor


class LayerStats:
    """Statistics of one layer under published names.

    Attributes:
        layer: the layer.
        weight: its FP32 weight as the file has it (batch norm folded in), shape `layer.shape`.
    """

    def __init__(self, layer: Layer, weight: Tensor, source: StatsSource) -> None:
        self.layer = layer
        self.weight = weight
        self._source = source

    @property
    def gradient_samples(self) -> Tensor:
        """Gradients under resampled calibration batches, shape (R, *weight.shape)."""
        return self._source.gradient_samples(self.layer)

    @property
    def gradient_examples(self) -> int:
        """Examples that each of the gradient samples is the mean over."""
        return self._source.gradient_examples()

    @property
    def gradient(self) -> Tensor:
        """Mean gradient on the calibration set, shape of the weight."""
        return self.gradient_samples.mean(dim=0)

    @property
    def input_mean(self) -> Tensor:
        """Mean input patch, shape (groups, d) with d = weight entries of one output channel; zeros for an embedding."""
        return self._source.input_mean(self.layer)

    @property
    def input_second_moment(self) -> Tensor:
        """Mean of x x^T over input patches, shape (groups, d, d).

        An embedding multiplies nothing: it has the identity, so that an error counts the same in each entry of a row.
        """
        return self._source.input_second_moment(self.layer)

    @property
    def input_shrinkage(self) -> Tensor:
        """How little the input covariance is known from so few examples: shape (groups,), 0 (exactly) to 1 (not at all).

        The estimate of least expected error is (1 - r) C + r m I, with the covariance C on the calibration set and the mean m
        of its diagonal (Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices").
        """
        return self._source.input_shrinkage(self.layer)

    @property
    def input_square(self) -> Tensor:
        """Mean of x^2 of the input that each weight multiplies, shape of the weight."""
        return self._by_weight(self.input_second_moment.diagonal(dim1=1, dim2=2))

    @property
    def input_variance(self) -> Tensor:
        """Variance of the input that each weight multiplies, shape of the weight."""
        return (self.input_square - self._by_weight(self.input_mean).square()).clamp_min(0.0)

    def output_square(self, weight: Tensor) -> Tensor:
        """Mean square that a weight of the layer's shape gives each output channel, without bias: shape (channels,)."""
        return self._quadratic(weight, self.input_second_moment)

    def output_variance(self, weight: Tensor) -> Tensor:
        """Variance that a weight of the layer's shape gives each output channel: shape (channels,)."""
        mean = self.input_mean
        return self._quadratic(weight, self.input_second_moment - mean[:, :, None] * mean[:, None, :]).clamp_min(0.0)

    def _quadratic(self, weight: Tensor, moments: Tensor) -> Tensor:
        """The value w M w^T of each output channel with its group's moments M (groups, d, d)."""
        rows = weight.movedim(self.layer.channel_axis, 0).flatten(1)
        grouped = rows.reshape(len(moments), len(rows) // len(moments), rows.shape[1])
        return ((grouped @ moments) * grouped).sum(2).flatten()

    def _by_weight(self, inputs: Tensor) -> Tensor:
        """Figures of inputs (groups, d), for each weight that reads them: the weight's shape."""
        moved = self.weight.movedim(self.layer.channel_axis, 0)
        rows = inputs.repeat_interleave(len(moved) // len(inputs), dim=0)
        return rows.reshape(moved.shape).movedim(0, self.layer.channel_axis)

    def copied(self) -> LayerStats:
        """The same with a weight of its own; all other statistics are computed afresh for whoever asks."""
        return LayerStats(self.layer, self.weight.clone(), self._source)

    def cut(self, cuts: Mapping[int, Tensor]) -> LayerStats:
        """The statistics of what is left of the layer.

        Args:
            cuts: axis of the weight to the indices that are left.
        """
        if not cuts:
            return self
        shape = tuple(len(cuts[axis]) if axis in cuts else size for axis, size in enumerate(self.layer.shape))
        groups = shape[self.layer.channel_axis] if self.layer.kind == "depthwise" else self.layer.groups
        layer = replace(self.layer, shape=shape, groups=groups)
        return LayerStats(layer, slice_axes(self.weight, cuts), _CutSource(self, cuts))


class _CutSource:
    """Statistics of a whole layer, seen by one that lost channels."""

    def __init__(self, whole: LayerStats, cuts: Mapping[int, Tensor]) -> None:
        self._whole, self._cuts = whole, cuts

    def gradient_examples(self) -> int:
        return self._whole.gradient_examples

    def gradient_samples(self, layer: Layer) -> Tensor:
        return slice_axes(self._whole.gradient_samples, {axis + 1: kept for axis, kept in self._cuts.items()})

    def input_mean(self, layer: Layer) -> Tensor:
        return self._inputs(self._groups(self._whole.input_mean), axes=(1,))

    def input_second_moment(self, layer: Layer) -> Tensor:
        return self._inputs(self._groups(self._whole.input_second_moment), axes=(1, 2))

    def input_shrinkage(self, layer: Layer) -> Tensor:
        return self._groups(self._whole.input_shrinkage)

    def _groups(self, statistic: Tensor) -> Tensor:
        """Of a depthwise convolution, each channel has its own."""
        whole = self._whole.layer
        is_cut = whole.kind == "depthwise" and whole.channel_axis in self._cuts
        return statistic[self._cuts[whole.channel_axis]] if is_cut else statistic

    def _inputs(self, statistic: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The patch entries that belong to the input channels that are left."""
        kept = self._cuts.get(1 - self._whole.layer.channel_axis)
        if kept is None:
            return statistic
        window = math.prod(self._whole.layer.shape[2:])
        entries = (kept[:, None] * window + torch.arange(window)).flatten()
        return slice_axes(statistic, dict.fromkeys(axes, entries))
