"""The bias of a static integer layer: int32, on the grid of the kernel's own sum."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.components import QuantizedTensor
from autocompress.tensors.ranges import Range


def integer_bias(bias: Tensor, weight: QuantizedTensor, grid: Range) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes and scale, shape (channels,) each: the scale is that of the input times that of the weight (arXiv 1712.05877, 2.4).

    Args:
        bias: float32, shape (channels,).
        grid: of the layer's input.
    """
    scale = np.broadcast_to(np.float32(grid.scale) * weight.scale.numpy().astype(np.float32), tuple(bias.shape)).copy()
    limit = np.iinfo(np.int32)
    codes = np.clip(np.rint(bias.numpy().astype(np.float64) / scale), limit.min, limit.max).astype(np.int32)
    return codes, scale


def rounded_bias(bias: Tensor, weight: QuantizedTensor, grid: Range) -> Tensor:
    """The float32 values that the codes stand for."""
    codes, scale = integer_bias(bias, weight, grid)
    return torch.from_numpy((codes * scale.astype(np.float64)).astype(np.float32))
