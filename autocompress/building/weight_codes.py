"""How a file stores the integer codes of a weight: dense or as a bit mask and the packed non-zeros, whichever is smaller.

Rules proved on ONNX Runtime (DESIGN.md section 5); all of it folds at load:

* 4-bit codes are stored as INT4 and widened by `Cast`: 4-bit bytes, 8-bit kernels;
* codes that name levels of a codebook are stored as UINT4 and looked up by `Gather`;
* sparse codes are a bit mask and the packed non-zeros.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from autocompress.building.onnx_edit import OnnxEdit
from autocompress.components import Capabilities, QuantizedTensor

NODE_BYTES = 40
"""Bytes of one operator with short names in a file, for choosing an encoding."""


def write_codes(edit: OnnxEdit, weight: QuantizedTensor, capabilities: Capabilities) -> tuple[str, ir.Value]:
    """The smaller of dense and packed sparse storage, as the int8 numbers that a kernel computes with."""
    levels = weight.levels.numpy()
    named = weight.codebook is not None and weight.bits <= 4 and capabilities.codebooks
    bits = 4 if named or (weight.bits <= 4 and weight.codebook is None) else 8
    codes, table = (weight.codes.numpy(), weight.codebook) if named else (levels, None)
    name = f"codebook{bits}" if named else f"int{bits}"
    sparse = capabilities.packed_sparse and _sparse_bytes(levels, bits) < _dense_bytes(levels, bits)
    if sparse and not weight.zero_point.any():
        return f"sparse-{name}", _expanded(edit, codes, levels != 0, bits, table)
    return name, _stored(edit, codes, bits, table)


def _stored(edit: OnnxEdit, codes: NDArray[np.int8], bits: int, table: Tensor | None) -> ir.Value:
    """Codes in 4 or 8 bits each, and with a table the levels that they name."""
    if bits == 8:
        return edit.initializer(codes)
    kind = ir.DataType.INT4 if table is None else ir.DataType.UINT4
    packed = edit.register(ir.PackedTensor(_pack_nibbles(codes.reshape(-1)), kind, shape=ir.Shape(codes.shape)))
    if table is None:
        return edit.node("Cast", [packed], {"to": ir.DataType.INT8.value})
    names = edit.node("Cast", [packed], {"to": ir.DataType.INT32.value})
    return edit.node("Gather", [edit.initializer(table.numpy()), names])


def _expanded(edit: OnnxEdit, codes: NDArray[np.int8], kept: NDArray[np.bool_], bits: int, table: Tensor | None) -> ir.Value:
    """Codes from a bit mask and the packed non-zeros, which go to the places that the mask names.

    A runtime keeps what it folds until the whole file is loaded, so what stands between is bytes, except for the indices of
    the non-zeros (int64): a running sum of the mask in their place takes twice the memory (EfficientNet-Lite0).

    Args:
        kept: bool, shape of the codes: which are not 0, or do not name it.
    """
    flat, stays = codes.reshape(-1), kept.reshape(-1)
    mask = edit.initializer(np.packbits(stays, bitorder="little")[:, None])
    places = edit.shared("places", np.arange(8, dtype=np.uint8))
    shifted = edit.node("BitShift", [mask, places], {"direction": "RIGHT"})  # (bytes, 8), the lowest bit first
    bit_rows = edit.node("BitwiseAnd", [shifted, edit.scalar(np.uint8(1))])
    row = edit.node("Reshape", [bit_rows, edit.shared("flat", np.array([-1]))])
    zeros = edit.node("Expand", [edit.scalar(np.int8(0)), edit.initializer(np.array([1, len(flat)]))])
    indices, packed = edit.node("NonZero", [row]), flat[stays][None].astype(np.int8)
    indices.type = ir.TensorType(ir.DataType.INT64)
    indices.shape = ir.Shape(packed.shape)  # what is of unknown size is not folded
    values = edit.node("ScatterElements", [zeros, indices, _stored(edit, packed, bits, table)], {"axis": 1})
    return edit.node("Reshape", [values, edit.initializer(np.array(codes.shape))])


def _pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte, the first in the low half (ONNX INT4 and UINT4)."""
    padded = np.concatenate([codes, np.zeros(len(codes) % 2, np.int8)]).view(np.uint8) & np.uint8(0xF)
    return padded[0::2] | (padded[1::2] << np.uint8(4))


def _dense_bytes(levels: NDArray[np.int8], bits: int) -> int:
    return math.ceil(levels.size * bits / 8)


def _sparse_bytes(levels: NDArray[np.int8], bits: int) -> int:
    """Mask, packed non-zeros, and the operators that expand them."""
    return math.ceil(levels.size / 8) + math.ceil(np.count_nonzero(levels) * bits / 8) + 8 * NODE_BYTES
