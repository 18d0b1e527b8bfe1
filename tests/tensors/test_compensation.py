"""What is left takes over what was removed: against numpy's least squares on the very inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress import compensate
from autocompress.network.graph import Layer
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compensation import DAMPING
from autocompress.tensors.sparsity import largest
from autocompress.testing import make_layer, make_stats

if TYPE_CHECKING:
    from tests.conftest import Tiny

Array = NDArray[Any]

LAYERS = {
    "linear": make_layer((5, 20), "linear"),
    "linear_channels_last": make_layer((20, 5), "linear", channel_axis=1),
    "conv2d": make_layer((4, 3, 3, 3)),
    "grouped": replace(make_layer((6, 2, 3, 3)), groups=3),
    "depthwise": make_layer((7, 1, 3, 3), "depthwise"),
    "conv_transpose": make_layer((3, 4, 3, 3), "conv_transpose", channel_axis=1),
}


def rows_of(weight: Tensor, layer: Layer) -> Tensor:
    return weight.movedim(layer.channel_axis, 0).flatten(1)


def inputs_of(layer: Layer, examples: int = 60) -> Tensor:
    """Correlated inputs with a mean, as activations are: (groups, n, d)."""
    width = layer.parameters // layer.channels
    random = torch.Generator().manual_seed(width)
    mixing = torch.randn(layer.groups, width, width, generator=random)
    return torch.randn(layer.groups, examples, width, generator=random) @ mixing / width**0.5 + 0.5


def made(name: str) -> tuple[Layer, Tensor, Tensor, Tensor]:
    """Layer, weight, mask and inputs."""
    layer = LAYERS[name]
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(layer.shape, generator=random)
    return layer, weight, torch.rand(layer.shape, generator=random) > 0.6, inputs_of(layer)


def system_of(row: Array, stays: Array, inputs: Array) -> tuple[Array, Array]:
    """Matrix and right-hand side of a fit of the weights that stay; damping is a penalty on moving them."""
    damping = np.sqrt(len(inputs) * DAMPING * (inputs**2).mean()) * np.eye(int(stays.sum()))
    return np.concatenate([inputs[:, stays], damping]), np.concatenate([inputs @ row, damping @ row[stays]])


def error(values: Array, matrix: Array, target: Array) -> float:
    return float(np.square(matrix @ values - target).sum())


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_least_squares_fit(name: str) -> None:
    layer, weight, mask, inputs = made(name)
    left = compensate(weight, mask, make_stats(weight, layer, inputs=inputs))
    rows = (rows_of(tensor, layer).double().numpy() for tensor in (weight, left))
    for channel, (row, found, stays) in enumerate(zip(*rows, rows_of(mask, layer).numpy(), strict=True)):
        seen = inputs[channel // (layer.channels // layer.groups)].double().numpy()
        matrix, target = system_of(row, stays, seen)
        fit = np.linalg.lstsq(matrix, target, rcond=None)[0]
        assert not found[~stays].any()
        np.testing.assert_allclose(found[stays], fit, atol=2e-2 * np.abs(row).max())
        best, plain = error(fit, matrix, target), error(row[stays], matrix, target)
        assert error(found[stays], matrix, target) <= best + 1e-3 * (plain - best)


@pytest.mark.parametrize("name", ["stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head"])
def test_outputs_of_real_layers_change_less(tiny: Tiny, exhaustive: Calibration, name: str) -> None:
    stats = exhaustive.stats(tiny.graph.layers[name])
    weight = stats.weight
    mask = largest(weight.abs(), 0.5)

    def lost(left: Tensor) -> Tensor:
        """Mean squared change of each output."""
        return stats.output_square(left - weight)

    plain, fitted = lost(weight * mask), lost(compensate(weight, mask, stats))
    assert (fitted <= plain * 1.001 + 1e-9).all()
    assert fitted.sum() < 0.75 * plain.sum()


@pytest.mark.parametrize("name", LAYERS)
def test_whole_inputs_can_be_removed(name: str) -> None:
    layer, weight, _, inputs = made(name)
    axis = 1 - layer.channel_axis
    mask = torch.ones(layer.shape, dtype=torch.bool).index_fill_(axis, torch.tensor([0]), False)
    stats = make_stats(weight, layer, inputs=inputs)
    found = compensate(weight, mask, stats)
    assert not found.select(axis, 0).any()
    assert stats.output_square(found - weight).sum() <= stats.output_square(weight * mask - weight).sum()


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_moves_where_nothing_is_lost(name: str) -> None:
    """Neither under a full mask, nor when the removed weights are 0 already, as after fine-tuning."""
    layer, weight, mask, inputs = made(name)
    stats = make_stats(weight, layer, inputs=inputs)
    assert torch.equal(compensate(weight, torch.ones_like(mask), stats), weight)
    assert torch.equal(compensate(weight * mask, mask, stats), weight * mask)
    assert torch.equal(compensate(weight, mask, make_stats(weight, layer)), weight * mask)  # uncorrelated inputs
    assert not compensate(weight, torch.zeros_like(mask), stats).any()


def test_weights_on_inputs_that_were_never_seen_stay_as_they_are() -> None:
    layer, weight, mask, inputs = made("linear")
    inputs[:, :, 5:] = 0
    mask[:, 5:] = True
    found = compensate(weight, mask, make_stats(weight, layer, inputs=inputs))
    torch.testing.assert_close(found[:, 5:], weight[:, 5:])
    assert not torch.equal(found[:, :5], (weight * mask)[:, :5])
    assert torch.equal(compensate(weight, mask, make_stats(weight, layer, inputs=torch.zeros_like(inputs))), weight * mask)


def test_a_twin_of_a_removed_input_takes_its_weight() -> None:
    """Two inputs that are always equal: whichever stays does the work of both."""
    inputs = torch.randn(1, 100, 3, generator=torch.Generator().manual_seed(0))
    inputs[:, :, 2] = inputs[:, :, 0]
    weight = torch.tensor([[1.0, 1.0, 2.0]])
    found = compensate(
        weight, torch.tensor([[True, True, False]]), make_stats(weight, make_layer((1, 3), "linear"), inputs=inputs)
    )
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.0, 0.0]]), atol=0.05, rtol=0)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
def test_units_of_weights_and_inputs_do_not_matter(scale: float) -> None:
    layer, weight, mask, inputs = made("conv2d")
    expected = compensate(weight, mask, make_stats(weight, layer, inputs=inputs))
    found = compensate(scale * weight, mask, make_stats(weight, layer, inputs=inputs))
    assert torch.equal(found / scale, expected)
    assert torch.equal(compensate(weight, mask, make_stats(weight, layer, inputs=scale * inputs)), expected)
