"""What calibration data tells about a layer. Each statistic is computed once, when a component first asks for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from autocompress.graph import Layer


class StatsSource(Protocol):
    """Where the statistics come from."""

    def gradient_samples(self, layer: Layer) -> Tensor:
        """Gradients of the loss with respect to the weight under resampled calibration batches: (R, *layer.shape)."""

    def input_mean(self, layer: Layer) -> Tensor:
        """Mean of the input patches: (groups, d), where d is the number of inputs of one output."""

    def input_second_moment(self, layer: Layer) -> Tensor:
        """Mean of x x^T over the input patches: (groups, d, d)."""


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
    def gradient(self) -> Tensor:
        """Mean gradient on the calibration set, shape of the weight."""
        return self.gradient_samples.mean(dim=0)

    @property
    def input_mean(self) -> Tensor:
        """Mean input patch, shape (groups, d) with d = weight entries of one output channel."""
        return self._source.input_mean(self.layer)

    @property
    def input_second_moment(self) -> Tensor:
        """Mean of x x^T over input patches, shape (groups, d, d)."""
        return self._source.input_second_moment(self.layer)
