"""The weights on which quantizers, pruners and recoveries are tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.network.graph import Layer
from autocompress.testing.layers import make_layer

Case = tuple[Tensor, Layer]
"""A weight, and the layer that it is of."""


def random_tensor(*shape: int) -> Tensor:
    """Standard normal numbers, always the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _scaled_channels(*factors: float) -> Tensor:
    """One channel for each factor."""
    return random_tensor(len(factors), 16) * torch.tensor(factors)[:, None]


def _cases() -> dict[str, Case]:
    """Weights that real models contain, and those that break a formula."""
    weights = {
        "zeros": torch.zeros(4, 3),
        "positive_constant": torch.full((4, 3), 0.3),
        "negative_constant": torch.full((4, 3), -0.3),
        "zero_channel": _scaled_channels(1.0, 0.0, 0.5),
        "uneven_channels": _scaled_channels(1000.0, 1.0, 1e-30, 1e-3),
        "all_positive": random_tensor(5, 7).abs() + 0.1,
        "minute": random_tensor(4, 3) * 1e-40,
        "single_channel": random_tensor(1, 9),
        "one_element": random_tensor(1, 1),
        "no_channels": torch.zeros(0, 4),
    }
    linear = {name: (weight, make_layer(tuple(weight.shape), "linear")) for name, weight in weights.items()}
    return linear | {
        "conv2d": (random_tensor(8, 4, 3, 3), make_layer((8, 4, 3, 3))),
        "conv1d": (random_tensor(6, 4, 5), make_layer((6, 4, 5), "conv1d")),
        "depthwise": (random_tensor(6, 1, 3, 3), make_layer((6, 1, 3, 3), "depthwise")),
        "linear": (random_tensor(5, 7), make_layer((5, 7), "linear")),
        "linear_channels_last": (random_tensor(5, 7).t(), make_layer((7, 5), "linear", channel_axis=1)),  # not contiguous
    }


CASES = _cases()


class WeightContract:
    """Gives each test every weight of `CASES`, as copies."""

    @pytest.fixture(params=CASES)
    def case(self, request: pytest.FixtureRequest) -> Case:
        """Weight and layer."""
        weight, layer = CASES[request.param]
        return weight.clone(), layer


def half_mask(weight: Tensor) -> Tensor:
    """A mask that removes about half of the weights."""
    return random_tensor(*weight.shape) > 0
