"""Matrices with a scale for each block of inputs, in the layout of ONNX Runtime's operator `MatMulNBits`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.components import QuantizedTensor
from autocompress.errors import PolicyError

RUNTIME = "com.microsoft"
"""Domain of the operator."""

FLOAT32_LEVEL = 1
"""Accuracy level that computes with float32 activations; 4 is int8, and 0 leaves the choice to the runtime."""

LEAST_BLOCK = 16


@dataclass(frozen=True)
class Blocks:
    """The operator's inputs for N outputs of K inputs each, in ceil(K / size) blocks.

    Attributes:
        codes: uint8, shape (N, blocks, size * bits / 8): unsigned codes, the first of a byte in its low half; the last block is
            filled up.
        scale: float32, shape (N, blocks).
        zero_point: uint8, shape (N, ceil(blocks * bits / 8)); None: 2 ** (bits - 1) everywhere.
        bits: 4 or 8.
        inputs: K.
        size: inputs of a block.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | None
    bits: int
    inputs: int
    size: int


def pack_blocks(weight: QuantizedTensor) -> Blocks:
    """Write a quantized matrix with `group_size` as the operator reads it.

    Raises:
        PolicyError: the operator has no blocks of this size.
    """
    size = weight.group_size or 0
    if size < LEAST_BLOCK or size & (size - 1):
        raise PolicyError(f"blocks of {size} inputs: the runtime's operator takes powers of two from {LEAST_BLOCK}")
    bits = 4 if weight.bits <= 4 and weight.codebook is None else 8
    rows = (weight.levels if weight.axis == 0 else weight.levels.T).numpy()  # (N, K)
    count = math.ceil(rows.shape[1] / size)
    filled = np.zeros((len(rows), count * size), np.int8)
    filled[:, : rows.shape[1]] = rows
    codes = _packed(filled, bits).reshape(len(rows), count, size * bits // 8)
    zero_point = _packed(weight.zero_point.numpy(), bits) if weight.zero_point.any() else None
    return Blocks(codes, weight.scale.numpy().astype(np.float32), zero_point, bits, rows.shape[1], size)


def _packed(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Signed codes, shape (rows, n), as unsigned ones, two of 4 bits a byte: (rows, ceil(n * bits / 8))."""
    unsigned: NDArray[np.uint8] = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 8:
        return unsigned
    even = np.pad(unsigned, ((0, 0), (0, unsigned.shape[1] % 2)))
    packed: NDArray[np.uint8] = even[:, 0::2] | (even[:, 1::2] << np.uint8(4))
    return packed
