"""A layer and its statistics, made up."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from autocompress.network.graph import Layer
from autocompress.tensors.stats import LayerStats

GRADIENT_SAMPLES, GRADIENT_EXAMPLES = 8, 32
"""Sums of gradients that made-up statistics have, and the examples that they are of."""


def make_layer(shape: tuple[int, ...], kind: str = "conv2d", channel_axis: int = 0) -> Layer:
    """A layer with a weight of the given shape; depthwise has one group for each channel, every other kind one in all."""
    space = shape[2:]
    return Layer(
        name="layer",
        kind=kind,
        node="node",
        weight="layer.weight",
        bias=None,
        shape=shape,
        channel_axis=channel_axis,
        groups=shape[0] if kind == "depthwise" else 1,
        macs=math.prod(shape),
        input="input",
        output="output",
        strides=(1,) * len(space),
        dilations=(1,) * len(space),
        pads=(0,) * 2 * len(space),
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The given gradients, and statistics of the given inputs (groups, n, d); else of whitened ones (mean 0, covariance I)."""

    gradients: Tensor
    inputs: Tensor | None = None

    def gradient_samples(self, layer: Layer) -> Tensor:
        return self.gradients

    def gradient_examples(self) -> int:
        return GRADIENT_EXAMPLES

    def input_mean(self, layer: Layer) -> Tensor:
        return torch.zeros(layer.groups, _inputs(layer)) if self.inputs is None else self.inputs.mean(1)

    def input_second_moment(self, layer: Layer) -> Tensor:
        if self.inputs is None:
            return torch.eye(_inputs(layer)).repeat(layer.groups, 1, 1)
        return self.inputs.transpose(1, 2) @ self.inputs / self.inputs.shape[1]

    def input_shrinkage(self, layer: Layer) -> Tensor:
        return torch.zeros(layer.groups)


def _inputs(layer: Layer) -> int:
    """Inputs of one output."""
    return math.prod(size for axis, size in enumerate(layer.shape) if axis != layer.channel_axis)


def make_stats(
    weight: Tensor, layer: Layer, gradient_samples: Tensor | None = None, inputs: Tensor | None = None
) -> LayerStats:
    """Statistics of a layer for a test.

    Args:
        gradient_samples: shape (R, *weight.shape); drawn from a fixed seed when they are not given.
        inputs: input patches, shape (groups, n, d); whitened ones when they are not given.
    """
    if gradient_samples is None:
        random = torch.Generator().manual_seed(1)
        gradient_samples = torch.randn(GRADIENT_SAMPLES, *weight.shape, generator=random)
    return LayerStats(layer, weight, _Source(gradient_samples, inputs))
