"""The inputs of a layer's products: a convolution is its patches times its weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.network.graph import TRANSPOSED, Layer

POSITIONS = 128
"""Output positions of a convolution sampled in each image; 128 images give 16,384 patches for moments of up to 1,152 inputs."""


def sample_patches(values: Tensor, layer: Layer, seed: int = 0) -> Tensor:
    """Inputs of the layer's products: (groups, n, d), one example's after another's.

    Args:
        values: (N, channels, *space) for a convolution, (N, ..., features) for a linear layer.
        seed: chooses the output positions of a convolution, the same ones for all examples.
    """
    if layer.kind == "linear":
        return values.reshape(1, -1, values.shape[-1])
    if layer.kind == TRANSPOSED:
        return _mirrored(sample_patches(*_as_convolution(values, layer), seed), layer)
    padded = functional.pad(values, _torch_pads(layer.pads)) if any(layer.pads) else values
    columns = padded.flatten(2).index_select(2, _places(padded.shape[2:], layer, seed).flatten())  # (N, channels, n * window)
    window = math.prod(layer.shape[2:])
    columns = columns.reshape(len(values), layer.groups, -1, columns.shape[2] // window, window)
    return columns.permute(1, 0, 3, 2, 4).reshape(layer.groups, -1, columns.shape[2] * window)


def _as_convolution(values: Tensor, layer: Layer) -> tuple[Tensor, Layer]:
    """A transposed convolution is a plain one with a mirrored window over its input, spread by zeros."""
    spread = values
    for axis, stride in enumerate(layer.strides, start=2):
        length = (spread.shape[axis] - 1) * stride + 1
        wide = spread.new_zeros(*spread.shape[:axis], length, *spread.shape[axis + 1 :])
        spread = wide.index_copy_(axis, torch.arange(0, length, stride), spread)
    reach = [dilation * (size - 1) for size, dilation in zip(layer.shape[2:], layer.dilations, strict=True)]
    pads = tuple(extent - cut for extent, cut in zip([*reach, *reach], layer.pads, strict=True))
    return spread, dataclasses.replace(layer, kind="conv2d", strides=(1,) * len(layer.strides), pads=pads)


def _mirrored(patches: Tensor, layer: Layer) -> Tensor:
    """Reverse each window: patches of shape (groups, n, channels * window)."""
    windows = patches.reshape(*patches.shape[:2], -1, math.prod(layer.shape[2:]))
    return windows.flip(-1).flatten(2)


def _torch_pads(pads: tuple[int, ...]) -> list[int]:
    """ONNX lists all begins, then all ends, first axis first; torch lists (begin, end) pairs, last axis first."""
    half = len(pads) // 2
    return [size for axis in reversed(range(half)) for size in (pads[axis], pads[axis + half])]


def _positions(size: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Indices that each output position reads along one axis: (outputs, kernel)."""
    outputs = (size - (kernel - 1) * dilation - 1) // stride + 1
    return torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation


def _places(space: Sequence[int], layer: Layer, seed: int) -> Tensor:
    """Flat indices into the padded space that at most POSITIONS random outputs read: (n, window)."""
    axes = [_positions(*axis) for axis in zip(space, layer.shape[2:], layer.strides, layer.dilations, strict=True)]
    counts = [len(axis) for axis in axes]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.unravel_index(torch.randperm(math.prod(counts), generator=generator)[:POSITIONS], counts)
    flat = torch.zeros(len(chosen[0]), 1, dtype=torch.int64)
    for size, axis, place in zip(space, axes, chosen, strict=True):
        flat = (flat[:, :, None] * size + axis[place][:, None, :]).flatten(1)
    return flat
