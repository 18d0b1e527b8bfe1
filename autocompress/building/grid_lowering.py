"""Puts quantizers behind activations, and what a runtime needs around them to compute as the policy says.

Rules proved on ONNX Runtime (DESIGN.md section 5):

* a hard sigmoid is `Add -> QuantizeLinear`, whose saturation cuts it; a hard swish multiplies by one;
* a float convolution that reads a quantized tensor gets a barrier, or the runtime would make it integer as well;
* a float pool that gives a quantized tensor gets one behind it, or the runtime would pool codes with a slow kernel.
"""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from autocompress.building.onnx_edit import OnnxEdit
from autocompress.network.graph import Op
from autocompress.policy import INTEGER_BITS
from autocompress.tensors.ranges import Range

ENDLESS = 3e38
"""A Clip at this bound changes no finite activation; unlike Identity it keeps the runtime from fusing through it."""

INTEGER_MOST = 2**INTEGER_BITS - 1
"""The largest code of an activation."""


@final
class GridLowering:
    """The quantized tensors of one graph."""

    def __init__(self, edit: OnnxEdit) -> None:
        self._edit = edit
        self._factors: dict[str, float] = {}

    def make_hard(self, op: Op) -> None:
        """Let the saturation of a quantizer cut the two corners of a hard sigmoid, for which the runtime has no integer kernel.

        `clip(alpha x + beta, 0, 1) = alpha clip(x + beta / alpha, 0, 1 / alpha)`: a grid from 0 to 1 / alpha cuts the sum, and
        its codes are read with the factor alpha in their scale.
        """
        node = self._edit.nodes[op.name]
        alpha, beta = _slope(node)
        source = node.inputs[0]
        assert source is not None
        shifted = self._edit.node("Add", [source, self._constant_code(beta / alpha)])
        if op.op_type == "HardSigmoid":
            self._factors[op.output] = alpha
            self._edit.substitute(node, shifted, shifted)
        else:
            product = self._edit.node("Mul", [source, self._quantized(shifted, Range(1 / INTEGER_MOST, 0), alpha)])
            self._edit.substitute(node, product, product)

    def _constant_code(self, value: float) -> ir.Value:
        """A positive number as the largest code of a grid."""
        code, scale = np.uint8(INTEGER_MOST), np.float32(value / INTEGER_MOST)
        return self._edit.node("DequantizeLinear", [self._edit.scalar(number) for number in (code, scale, np.uint8(0))])

    def add_barrier(self, name: str, tensor: str, input_range: Range) -> None:
        """Keep the runtime from rewriting a float node that stands between quantized tensors; values stay as they are."""
        node, source = self._edit.nodes[name], self._edit.values[tensor]
        node.replace_input_with(list(node.inputs).index(source), self._barrier(source, input_range))

    def _barrier(self, source: ir.Value, grid: Range) -> ir.Value:
        if grid.zero_point == 0:
            return self._edit.node("Relu", [source])
        limits = [self._edit.scalar(np.float32(bound)) for bound in (-ENDLESS, ENDLESS)]
        return self._edit.node("Clip", [source, *limits])

    def quantize_tensor(self, tensor: str, grid: Range, held: bool) -> None:
        """Put one quantizer behind a tensor; every reader, and the graph's output, takes the dequantized value.

        Args:
            held: keep the runtime from moving the quantizer to before the operator that gives the tensor.
        """
        value = self._edit.values[tensor]
        readers = [(use.node, use.idx) for use in value.uses()]
        dequantized = self._quantized(self._barrier(value, grid) if held else value, grid, self._factors.get(tensor, 1.0))
        for node, index in readers:
            node.replace_input_with(index, dequantized)
        if value.is_graph_output():
            self._edit.replace_output(value, dequantized)

    def _quantized(self, value: ir.Value, grid: Range, factor: float) -> ir.Value:
        """`factor * value`, rounded to a grid."""
        code = np.uint8 if grid.bits == INTEGER_BITS else np.uint16
        zero_point = self._edit.scalar(np.int8(0) if grid.signed else code(grid.zero_point))
        codes = self._edit.node("QuantizeLinear", [value, self._edit.scalar(np.float32(grid.scale / factor)), zero_point])
        return self._edit.node("DequantizeLinear", [codes, self._edit.scalar(np.float32(grid.scale)), zero_point])


def _slope(node: ir.Node) -> tuple[float, float]:
    """Alpha and beta of a hard sigmoid; those inside a hard swish are fixed."""
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    return node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
