"""Writes a policy's tensors into the exported graph, so that the runtime computes what was decided and nothing else.

Rules proved on ONNX Runtime (DESIGN.md section 5):

* an integer layer is `DequantizeLinear(weight) -> op -> QuantizeLinear`, its bias int32 on the grid scale_x * scale_w;
* 4-bit codes are stored as INT4 and widened by `Cast`, which folds at load: 4-bit bytes, 8-bit kernels;
* a float convolution that reads a quantized tensor gets a barrier, or the runtime would make it integer as well;
* sparse codes are a bit mask and the packed non-zeros, expanded by operators that fold at load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from autocompress.calibration import Range
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.compress import CompressedModel
from autocompress.graph import BaseGraph, Layer
from autocompress.placement import Placement

ENDLESS = 3e38
"""A Clip at this bound changes no finite activation; unlike Identity it keeps the runtime from fusing through it."""

NODE_BYTES = 40
"""Bytes of one operator with short names in a file, for choosing an encoding."""


@dataclass(frozen=True)
class Lowered:
    """An edited graph.

    Attributes:
        encodings: layer to how its weight is stored: float32, int8, int4, sparse-int8, sparse-int4.
    """

    model: ir.Model
    encodings: Mapping[str, str]


def lower(graph: BaseGraph, compressed: CompressedModel, placement: Placement, capabilities: Capabilities) -> Lowered:
    """Write compressed tensors and their placement into a fresh copy of the base graph."""
    edit = _Edit(graph.open(), capabilities)
    for name, layer in graph.layers.items():
        if name in compressed.layers:
            edit.replace_layer(layer, compressed.layers[name], compressed.ranges.get(placement.quantized.get(layer.input, "")))
    for node, tensor in placement.barriers.items():
        edit.add_barrier(node, tensor, compressed.ranges[placement.quantized[tensor]])
    for tensor, source in placement.quantized.items():
        edit.quantize_tensor(tensor, source, compressed.ranges[source])
    return edit.finish()


class _Edit:
    """One graph being edited."""

    def __init__(self, model: ir.Model, capabilities: Capabilities) -> None:
        self._model, self._graph, self._capabilities = model, model.graph, capabilities
        self._nodes = {str(node.name): node for node in self._graph}
        self._values = {str(value.name): value for value in self._graph.inputs}
        self._values |= {str(value.name): value for node in self._graph for value in node.outputs}
        self._encodings: dict[str, str] = {}
        self._count = 0

    def finish(self) -> Lowered:
        """Drop what is no longer read, put operators into order, and give initializers short names."""
        for name in [name for name, value in self._graph.initializers.items() if not list(value.uses())]:
            del self._graph.initializers[name]
        self._graph.sort()
        for index, value in enumerate(list(self._graph.initializers.values())):
            value.name = f"w{index}"
        return Lowered(self._model, self._encodings)

    def replace_layer(self, layer: Layer, compressed: CompressedLayer, input_range: Range | None) -> None:
        """Store the layer's weight and bias, in codes when its input is quantized and its weight has codes."""
        node = self._nodes[layer.node]
        weight = compressed.weight
        if isinstance(weight, QuantizedTensor):
            assert input_range is not None, f"layer {layer.name} has codes but its input {layer.input} is not quantized"
            node.replace_input_with(1, self._dequantized_weight(layer, weight))
            self._set_bias(node, self._dequantized_bias(compressed, weight, input_range))
        else:
            self._encodings[layer.name] = "float32"
            node.replace_input_with(1, self._initializer(weight.numpy()))
            self._set_bias(node, None if compressed.bias is None else self._initializer(compressed.bias.numpy()))
        if layer.kind == "depthwise":
            node.attributes["group"] = ir.AttrInt64("group", int(compressed.dense().shape[0]))

    def add_barrier(self, name: str, tensor: str, input_range: Range) -> None:
        """Keep the runtime from rewriting a float node that stands between quantized tensors; values stay as they are."""
        node, source = self._nodes[name], self._values[tensor]
        if input_range.zero_point == 0:
            barrier = self._node("Relu", [source])
        else:
            limits = [self._scalar(np.float32(bound)) for bound in (-ENDLESS, ENDLESS)]
            barrier = self._node("Clip", [source, *limits])
        node.replace_input_with(list(node.inputs).index(source), barrier)

    def quantize_tensor(self, tensor: str, source: str, grid: Range) -> None:
        """Put one quantizer behind a tensor; every reader, and the graph's output, takes the dequantized value."""
        value = self._values[tensor]
        readers = [(use.node, use.idx) for use in value.uses()]
        parameters = [self._scalar(np.float32(grid.scale)), self._scalar(np.uint8(grid.zero_point))]
        quantized = self._node("QuantizeLinear", [value, *parameters])
        dequantized = self._node("DequantizeLinear", [quantized, *parameters])
        for node, index in readers:
            node.replace_input_with(index, dequantized)
        if value.is_graph_output():
            self._replace_output(value, dequantized)

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        position = list(self._graph.outputs).index(old)
        new.shape, new.type = old.shape, old.type
        old.name, new.name = new.name, old.name
        self._graph.outputs[position] = new

    def _set_bias(self, node: ir.Node, bias: ir.Value | None) -> None:
        if bias is None:
            return
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)

    def _dequantized_weight(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        encoding, codes = self._codes(weight)
        self._encodings[layer.name] = encoding
        inputs = [codes, self._initializer(weight.scale.numpy().astype(np.float32))]
        if weight.zero_point.any() or layer.kind == "linear":  # the runtime fuses a Gemm only with its zero points spelled out
            inputs.append(self._initializer(weight.zero_point.numpy()))
        axis: dict[str, int | str] = {"axis": weight.axis} if weight.scale.dim() else {}
        return self._node("DequantizeLinear", inputs, axis)

    def _dequantized_bias(self, compressed: CompressedLayer, weight: QuantizedTensor, grid: Range) -> ir.Value | None:
        """The kernel adds the bias to its int32 sum, so it must lie on exactly that sum's grid."""
        if compressed.bias is None:
            return None
        scale = np.broadcast_to(np.float32(grid.scale) * weight.scale.numpy().astype(np.float32), compressed.bias.shape)
        limit = np.iinfo(np.int32)
        codes = np.clip(np.rint(compressed.bias.numpy().astype(np.float64) / scale), limit.min, limit.max).astype(np.int32)
        return self._node("DequantizeLinear", [self._initializer(codes), self._initializer(scale.copy())], {"axis": 0})

    def _codes(self, weight: QuantizedTensor) -> tuple[str, ir.Value]:
        """The smaller of dense and packed sparse storage, as int8 codes."""
        codes = weight.codes.numpy()
        bits = 4 if weight.bits <= 4 else 8
        sparse = self._capabilities.packed_sparse and _sparse_bytes(codes, bits) < _dense_bytes(codes, bits)
        if sparse and not weight.zero_point.any():
            return f"sparse-int{bits}", self._expanded(codes, bits)
        return f"int{bits}", self._stored(codes, bits)

    def _stored(self, codes: NDArray[np.int8], bits: int) -> ir.Value:
        """Codes in 4 or 8 bits each."""
        if bits == 8:
            return self._initializer(codes)
        packed = _pack_nibbles(codes.reshape(-1))
        tensor = ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(codes.shape))
        return self._node("Cast", [self._register(tensor)], {"to": ir.DataType.INT8.value})

    def _expanded(self, codes: NDArray[np.int8], bits: int) -> ir.Value:
        """Codes from a bit mask and the packed non-zeros.

        The running sum of the mask numbers the non-zeros from 1; times the mask it is 0 for a zero, and entry 0 of the packed
        list is 0.
        """
        flat = codes.reshape(-1)
        mask = self._initializer(np.packbits(flat != 0, bitorder="little")[:, None])
        packed = self._stored(np.concatenate([[0], flat[flat != 0]]).astype(np.int8), bits)
        places, zero = self._shared("places", lambda: np.arange(8, dtype=np.uint8)), self._shared("zero", lambda: np.int64(0))
        shifted = self._node("BitShift", [mask, places], {"direction": "RIGHT"})  # (bytes, 8), the lowest bit first
        rows = self._node("BitwiseAnd", [shifted, self._scalar(np.uint8(1))])
        rows = self._node("Cast", [rows], {"to": ir.DataType.INT32.value})
        ones = self._node("Reshape", [rows, self._shared("flat", lambda: np.array([-1]))])
        numbers = self._node("Mul", [self._node("CumSum", [ones, zero]), ones])
        padded = -len(flat) % 8
        values = self._node("Gather", [packed, numbers])
        if padded:
            limits = [self._initializer(np.array([bound])) for bound in (0, len(flat))]
            values = self._node("Slice", [values, *limits])
        return self._node("Reshape", [values, self._initializer(np.array(codes.shape))])

    def _node(self, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, int | str] | None = None) -> ir.Value:
        self._count += 1
        node = ir.node(op_type, inputs, attributes=attributes or {}, name="")
        node.outputs[0].name = f"v{self._count}"
        self._graph.append(node)
        return node.outputs[0]

    def _scalar(self, number: np.generic) -> ir.Value:
        """One initializer for each distinct scalar."""
        return self._shared(f"{number.dtype}:{number}", lambda: number)

    def _shared(self, key: str, make: object) -> ir.Value:
        name = f"shared:{key}"
        if name not in self._graph.initializers:
            assert callable(make)
            self._register(ir.Tensor(np.asarray(make())), name)
        return self._graph.initializers[name]

    def _initializer(self, array: NDArray[np.generic]) -> ir.Value:
        return self._register(ir.Tensor(np.ascontiguousarray(array)))

    def _register(self, tensor: ir.TensorProtocol, name: str = "") -> ir.Value:
        self._count += 1
        value = ir.Value(name=name or f"new:{self._count}", const_value=tensor)
        value.shape, value.type = tensor.shape, ir.TensorType(tensor.dtype)  # type: ignore[assignment]
        self._graph.register_initializer(value)
        return value


def _pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte, the first in the low half (ONNX INT4)."""
    padded = np.concatenate([codes, np.zeros(len(codes) % 2, np.int8)]).view(np.uint8) & np.uint8(0xF)
    return padded[0::2] | (padded[1::2] << np.uint8(4))


def _dense_bytes(codes: NDArray[np.int8], bits: int) -> int:
    return math.ceil(codes.size * bits / 8)


def _sparse_bytes(codes: NDArray[np.int8], bits: int) -> int:
    """Mask, packed non-zeros, and the operators that expand them."""
    return math.ceil(codes.size / 8) + math.ceil((np.count_nonzero(codes) + 1) * bits / 8) + 9 * NODE_BYTES
