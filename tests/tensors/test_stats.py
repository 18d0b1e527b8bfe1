"""Figures of a layer's inputs and outputs, against numpy on the inputs themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress import Layer, LayerStats
from autocompress.testing import make_layer, make_stats

LAYERS = {
    "linear": make_layer((5, 4), "linear"),
    "linear_channels_last": make_layer((4, 5), "linear", channel_axis=1),
    "conv2d": make_layer((4, 3, 3, 3)),
    "grouped": replace(make_layer((6, 2, 3, 3)), groups=3),
    "depthwise": make_layer((7, 1, 3, 3), "depthwise"),
}


def inputs_of(layer: Layer) -> Tensor:
    width = layer.parameters // layer.channels
    scale = torch.arange(1.0, width + 1)
    return torch.randn(layer.groups, 50, width, generator=torch.Generator().manual_seed(0)) * scale + scale.flip(0)


@pytest.mark.parametrize("name", LAYERS)
def test_figures_of_inputs_lie_where_they_are_multiplied(name: str) -> None:
    layer, weight = LAYERS[name], torch.randn(LAYERS[name].shape, generator=torch.Generator().manual_seed(1))
    inputs = inputs_of(layer)
    stats = make_stats(weight, layer, inputs=inputs)
    for channel in range(layer.channels):
        seen = inputs[channel // (layer.channels // layer.groups)].double().numpy()
        square, variance = (
            part.select(layer.channel_axis, channel).flatten() for part in (stats.input_square, stats.input_variance)
        )
        np.testing.assert_allclose(square, (seen**2).mean(0), rtol=1e-4)
        np.testing.assert_allclose(variance, seen.var(0), rtol=1e-3, atol=1e-3)
        outputs = seen @ weight.select(layer.channel_axis, channel).flatten().double().numpy()
        assert float(stats.output_square(weight)[channel]) == pytest.approx((outputs**2).mean(), rel=1e-4)
        assert float(stats.output_variance(weight)[channel]) == pytest.approx(outputs.var(), rel=1e-3)


def test_a_constant_input_has_no_variance_however_large_it_is() -> None:
    weight = torch.ones(1, 2)
    stats = make_stats(weight, make_layer((1, 2), "linear"), inputs=torch.full((1, 10, 2), 1000.1))
    assert (stats.input_variance >= 0).all()
    assert float(stats.output_variance(weight)) >= 0


def test_gradient_examples_survive_a_cut() -> None:
    weight = torch.ones(4, 2)
    stats = make_stats(weight, make_layer((4, 2), "linear"))
    assert stats.cut({0: torch.tensor([1])}).gradient_examples == stats.gradient_examples > 1


def test_shrinkage_is_cut_with_the_groups_that_it_belongs_to() -> None:
    source = make_stats(torch.ones(4, 1, 3, 3), make_layer((4, 1, 3, 3), "depthwise"))
    stats = LayerStats(source.layer, source.weight, Shrunk(torch.tensor([0.1, 0.2, 0.3, 0.4])))
    assert stats.cut({0: torch.tensor([1, 3])}).input_shrinkage.tolist() == pytest.approx([0.2, 0.4])
    matrix = make_stats(torch.ones(4, 2), make_layer((4, 2), "linear"))
    whole = LayerStats(matrix.layer, matrix.weight, Shrunk(torch.tensor([0.1])))
    assert whole.cut({0: torch.tensor([1]), 1: torch.tensor([0])}).input_shrinkage.tolist() == pytest.approx([0.1])


class Shrunk:
    """A source that knows one figure only."""

    def __init__(self, shrinkage: Tensor) -> None:
        self.shrinkage = shrinkage

    def input_shrinkage(self, layer: Layer) -> Tensor:
        return self.shrinkage

    def input_mean(self, layer: Layer) -> Tensor:
        raise NotImplementedError

    def input_second_moment(self, layer: Layer) -> Tensor:
        raise NotImplementedError

    def gradient_samples(self, layer: Layer) -> Tensor:
        raise NotImplementedError

    def gradient_examples(self) -> int:
        raise NotImplementedError
