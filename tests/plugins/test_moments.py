"""Moment matching against the moments of a forward run."""

from __future__ import annotations

import pytest
import torch
from autocompress_plugins.moments import GAIN_LIMITS, Moments
from torch.nn import functional

from autocompress import CompressedLayer, LayerStats, Recovery
from autocompress.network.graph import Layer
from autocompress.testing import RecoveryContract, make_layer


class TestMoments(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> Recovery:
        return Moments()


class Inputs:
    """Exact statistics of given inputs of a linear layer, shape (n, d)."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = inputs

    def gradient_samples(self, layer: Layer) -> torch.Tensor:
        raise NotImplementedError

    def input_mean(self, layer: Layer) -> torch.Tensor:
        return self.inputs.mean(0)[None]

    def input_second_moment(self, layer: Layer) -> torch.Tensor:
        return (self.inputs.T @ self.inputs / len(self.inputs))[None]


def test_outputs_have_the_mean_and_spread_of_fp32_again() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=random)
    inputs = torch.randn(2000, 8, generator=random) @ torch.randn(8, 8, generator=random) + 1.0  # neither centred nor white
    stats = LayerStats(make_layer((5, 8), "linear"), weight, Inputs(inputs))
    coarse = (weight / 0.7).round() * 0.7 * 0.8
    bias = torch.arange(5.0)
    repaired = Moments().repair(CompressedLayer(coarse, bias), stats, {})
    expected = functional.linear(inputs, weight, bias)
    found = functional.linear(inputs, repaired.dense(), repaired.bias)
    torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.std(0), expected.std(0), rtol=1e-3, atol=1e-3)
    worse = functional.linear(inputs, coarse, bias)
    assert (worse.std(0) / expected.std(0) - 1).abs().max() > 0.1  # there was something to repair


def test_a_broken_channel_is_not_blown_up() -> None:
    weight = torch.ones(1, 4)
    stats = LayerStats(make_layer((1, 4), "linear"), weight, Inputs(torch.randn(100, 4)))
    repaired = Moments().repair(CompressedLayer(weight / 100, torch.zeros(1)), stats, {})
    torch.testing.assert_close(repaired.dense(), weight / 100 * GAIN_LIMITS[1])


def test_inputs_that_hardly_vary_give_a_shift_and_no_gain() -> None:
    """Their variance is a difference of two large sums, and may come out negative."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 400, generator=random)
    inputs = 3.0 + 1e-4 * torch.randn(8, 400, generator=random)
    stats = LayerStats(make_layer((20, 400), "linear"), weight, Inputs(inputs))
    coarse = (weight / 0.7).round() * 0.7
    repaired = Moments().repair(CompressedLayer(coarse, torch.zeros(20)), stats, {})
    torch.testing.assert_close(repaired.dense(), coarse)
    found = functional.linear(inputs, repaired.dense(), repaired.bias)
    torch.testing.assert_close(found.mean(0), functional.linear(inputs, weight).mean(0), rtol=1e-3, atol=1e-2)
