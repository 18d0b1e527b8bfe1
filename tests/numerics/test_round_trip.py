"""Codes and the values that they stand for, against float64 arithmetic of numpy's that shares no code with the product."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from autocompress_plugins.affine import Int8
from numpy.typing import NDArray

from autocompress import QuantizedTensor
from autocompress.testing.layers import make_layer, make_stats

SHAPES = {
    "conv2d": (6, 4, 3, 3),
    "depthwise": (6, 1, 3, 3),
    "conv_transpose": (4, 6, 3, 3),
    "linear": (6, 40),
    "embedding": (6, 40),
}
AXES = {"conv_transpose": 1}
GRANULARITIES = ("tensor", "channel", "blocks")
SCHEMES = {
    "symmetric": {},
    "narrow": {"narrow": True},
    "zero_point": {"symmetric": False},
    "unsigned": {"symmetric": False, "signed": False},
    "least_squares": {"mse": True},
}
BITS = (2, 3, 4, 5, 6, 7, 8)


def drawn(kind: str, seed: int) -> torch.Tensor:
    """Channels of very different sizes, one of them zero, one all positive."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPES[kind], generator=random)
    channels = weight.movedim(AXES.get(kind, 0), 0)
    channels *= 10.0 ** torch.linspace(-3, 3, len(channels)).reshape(-1, *[1] * (weight.dim() - 1))
    channels[1], channels[2] = 0.0, channels[2].abs()
    return weight


def spread(parameter: NDArray[np.generic], quantized: QuantizedTensor) -> NDArray[np.float64]:
    """A number of each channel or block for each code, element by element."""
    wide = np.empty(tuple(quantized.codes.shape), np.float64)
    for index in np.ndindex(*wide.shape):
        channel = index[quantized.axis]
        if parameter.ndim == 2:
            assert quantized.group_size is not None
            wide[index] = parameter[channel, index[1 - quantized.axis] // quantized.group_size]
        else:
            wide[index] = parameter[channel] if parameter.ndim else parameter
    return wide


def grid(quantized: QuantizedTensor) -> NDArray[np.float64]:
    """Every value that a weight could have, by position: shape (*codes, levels), float64."""
    low, high = -(2 ** (quantized.bits - 1)), 2 ** (quantized.bits - 1) - 1
    book = None if quantized.codebook is None else quantized.codebook.numpy().astype(np.float64)
    levels = np.arange(low, high + 1, dtype=np.float64) if book is None else book
    scale, zero_point = (spread(part.numpy(), quantized) for part in (quantized.scale, quantized.zero_point))
    return (levels - zero_point[..., None]) * scale[..., None]


def decoded(quantized: QuantizedTensor) -> NDArray[np.float64]:
    """The values, float64."""
    first = 0 if quantized.codebook is not None else -(2 ** (quantized.bits - 1))
    places = quantized.codes.numpy().astype(np.int64) - first
    return np.take_along_axis(grid(quantized), places[..., None], -1)[..., 0]


def check(quantized: QuantizedTensor, weight: torch.Tensor) -> None:
    """Decoding is the one float32 nearest to the exact product; rounding finds the nearest of all values; both are stable."""
    np.testing.assert_array_equal(quantized.dequantize().numpy(), decoded(quantized).astype(np.float32))
    values, exact = grid(quantized), weight.double().numpy()
    nearest = np.abs(values - exact[..., None]).min(-1)
    again = quantized.rounded(weight)
    step = spread(quantized.scale.numpy(), quantized)
    assert (np.abs(decoded(again) - exact) - nearest <= 2e-6 * np.maximum(step, np.abs(exact))).all()
    assert torch.equal(again.rounded(again.dequantize()).codes, again.codes)


CASES = [
    (kind, granularity, scheme)
    for kind, granularity, scheme in product(SHAPES, GRANULARITIES, SCHEMES)
    if granularity != "blocks" or kind == "linear"
]


@pytest.mark.parametrize(("kind", "granularity", "scheme"), CASES)
def test_of_every_grid(kind: str, granularity: str, scheme: str) -> None:
    axis = AXES.get(kind, 0)
    layer, weight = make_layer(SHAPES[kind], kind, axis), drawn(kind, seed=len(scheme))
    for bits in BITS:
        quantizer = Int8(bits, granularity != "tensor", group_size=16 if granularity == "blocks" else None, **SCHEMES[scheme])
        quantized = quantizer.quantize(weight, bits, make_stats(weight, layer))
        shapes = {"tensor": (), "channel": (layer.channels,), "blocks": (layer.channels, 3)}
        assert tuple(quantized.scale.shape) == shapes[granularity]
        check(quantized, weight)
        if scheme in ("symmetric", "zero_point"):  # these cover the range: nothing is cut, so half a step is the worst
            error = np.abs(decoded(quantized) - weight.double().numpy())
            assert (error <= spread(quantized.scale.numpy(), quantized) * (0.5 + 1e-5)).all(), f"{bits} bits"


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose", "linear"])
def test_of_codebooks(kind: str, bits: int) -> None:
    random = np.random.default_rng(bits)
    levels = np.sort(random.choice(np.arange(-128, 128), 2**bits, replace=False)).astype(np.int8)
    weight, axis = drawn(kind, bits), AXES.get(kind, 0)
    codes = torch.from_numpy(random.integers(0, 2**bits, SHAPES[kind]).astype(np.int8))
    scale = torch.from_numpy(random.uniform(1e-4, 1, SHAPES[kind][axis]).astype(np.float32))
    zeros = torch.zeros(len(scale), dtype=torch.int8)
    quantized = QuantizedTensor(codes, scale, zeros, axis, bits, torch.from_numpy(levels))
    check(quantized, weight)
    assert torch.equal(quantized.rounded(quantized.dequantize()).codes, codes)
