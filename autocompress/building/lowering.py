"""Writes a policy's tensors into the exported graph, so that the runtime computes what was decided and nothing else.

Rules proved on ONNX Runtime (DESIGN.md section 5):

* a static integer layer is `DequantizeLinear(weight) -> op -> QuantizeLinear`, its bias int32 on the grid scale_x * scale_w;
* a dynamic one is `DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul -> Add`; layers that read one tensor share the first;
* a weight that is only stored in codes is `Cast -> Mul`, which folds at load: small file, float kernel. `DequantizeLinear`
  would run at each inference before a convolution, and turn a matrix product into one with 8-bit activations;
* with a scale for each block of inputs it is `MatMulNBits` with its accuracy level written out, because otherwise the level is
  the runtime's choice;
* an embedding gathers codes and scales, and multiplies what it gathered: its table stays in codes at run time;
* 4-bit codes are stored as INT4 and widened by `Cast`, which folds at load: 4-bit bytes, 8-bit kernels;
* codes that name levels of a codebook are stored as UINT4 and looked up by `Gather`, which folds as well;
* a zero point is subtracted at load where the levels still fit a byte: kernels are fast, or exist at all, without one only;
* a hard sigmoid is `Add -> QuantizeLinear`, whose saturation cuts it; a hard swish multiplies by one;
* a float convolution that reads a quantized tensor gets a barrier, or the runtime would make it integer as well;
* a float pool that gives a quantized tensor gets one behind it, or the runtime would pool codes with a slow kernel;
* sparse codes are a bit mask and the packed non-zeros, expanded by operators that fold at load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.building.bias import integer_bias
from autocompress.building.blocks import FLOAT32_LEVEL, RUNTIME, pack_blocks
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.network.graph import EMBEDDING, WEIGHT_INPUT, BaseGraph, Layer, Op
from autocompress.network.placement import HARD, Placement
from autocompress.policy import INTEGER_BITS, Activation
from autocompress.tensors.calibration import Range
from autocompress.tensors.compress import CompressedModel

ENDLESS = 3e38
"""A Clip at this bound changes no finite activation; unlike Identity it keeps the runtime from fusing through it."""

POOL = "MaxPool"
"""The runtime moves a quantizer from behind a float one to before it, where its integer kernel is many times slower."""

INTEGER_MOST = 2**INTEGER_BITS - 1
"""The largest code of an activation."""

NODE_BYTES = 40
"""Bytes of one operator with short names in a file, for choosing an encoding."""


@dataclass(frozen=True)
class Lowered:
    """An edited graph.

    Attributes:
        encodings: layer to how its weight is stored: float32, int8, int4, codebook4, blocks-int8, blocks-int4, or, as a bit
            mask and packed non-zeros, sparse-int8, sparse-int4, sparse-codebook4.
    """

    model: ir.Model
    encodings: Mapping[str, str]


def lower(graph: BaseGraph, compressed: CompressedModel, placement: Placement, capabilities: Capabilities) -> Lowered:
    """Write compressed tensors and their placement into a fresh copy of the base graph."""
    edit = _Edit(graph.open(), capabilities)
    for name, layer in graph.layers.items():
        if name in compressed.layers:
            grid = compressed.ranges.get(placement.quantized.get(layer.input, ""))
            edit.replace_layer(layer, compressed.layers[name], placement.modes.get(name), grid)
    for name in placement.dynamic:
        edit.make_dynamic(name)
    for op in graph.ops:
        if op.op_type in HARD and op.name in placement.integer:
            edit.make_hard(op)
    for node, tensor in placement.barriers.items():
        edit.add_barrier(node, tensor, compressed.ranges[placement.quantized[tensor]])
    held = capabilities.barriers
    pooled = {op.output for op in graph.ops if held and op.op_type == POOL and op.name not in placement.integer}
    moved = _moved_in_codes(graph, placement, capabilities) if capabilities.moves_codes else ()
    for tensor, source in placement.quantized.items():
        if tensor not in moved:
            edit.quantize_tensor(tensor, compressed.ranges[source], held=tensor in pooled)
    return edit.finish()


def _moved_in_codes(graph: BaseGraph, placement: Placement, capabilities: Capabilities) -> set[str]:
    """What operators that only move values give."""
    movers = [op for op in graph.ops if op.op_type in capabilities.passthrough_ops and op.name in placement.integer]
    return {name for op in movers for name in op.outputs}


class _Edit:
    """One graph being edited."""

    def __init__(self, model: ir.Model, capabilities: Capabilities) -> None:
        self._model, self._graph, self._capabilities = model, model.graph, capabilities
        self._nodes = {str(node.name): node for node in self._graph}
        self._values = {str(value.name): value for value in self._graph.inputs}
        self._values |= {str(value.name): value for node in self._graph for value in node.outputs}
        self._encodings: dict[str, str] = {}
        self._factors: dict[str, float] = {}
        self._found: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._count = 0

    def finish(self) -> Lowered:
        """Drop what is no longer read, put operators into order, and give initializers short names."""
        for name in [name for name, value in self._graph.initializers.items() if not list(value.uses())]:
            del self._graph.initializers[name]
        self._graph.sort()
        for index, value in enumerate(list(self._graph.initializers.values())):
            value.name = f"w{index}"
        return Lowered(self._model, self._encodings)

    def replace_layer(
        self, layer: Layer, compressed: CompressedLayer, mode: Activation | None, input_range: Range | None
    ) -> None:
        """Store the layer's weight and bias.

        Args:
            mode: how it computes when its weight has codes.
            input_range: grid of its input, when that is quantized.
        """
        node, weight = self._nodes[layer.node], compressed.weight
        self._fit_axes(node, layer.channels, compressed.dense().shape[layer.channel_axis])
        if not isinstance(weight, QuantizedTensor):
            self._encodings[layer.name] = "float32"
            node.replace_input_with(WEIGHT_INPUT[node.op_type], self._initializer(weight.numpy()))
            self._set_bias(node, self._float_bias(compressed))
        elif mode == "static":
            assert input_range is not None, f"layer {layer.name} is static but its input {layer.input} is not quantized"
            node.replace_input_with(1, self._dequantized_weight(layer, weight))
            self._set_bias(node, self._dequantized_bias(compressed, weight, input_range))
        elif mode == "dynamic":
            self._replace_dynamic(layer, node, weight, self._float_bias(compressed))
        elif layer.kind == EMBEDDING:
            self._replace_lookup(layer, node, weight)
        elif weight.group_size is not None:
            self._replace_blocks(layer, node, weight, self._float_bias(compressed))
        else:
            node.replace_input_with(1, self._float_weight(layer, weight))
            self._set_bias(node, self._float_bias(compressed))
        if layer.kind == "depthwise":
            node.attributes["group"] = ir.AttrInt64("group", int(compressed.dense().shape[0]))

    def make_dynamic(self, name: str) -> None:
        """Let a product of two activations find both grids at run time."""
        node = self._nodes[name]
        left, right = (self._found_grid(value) for value in node.inputs if value is not None)
        product = self._node("MatMulInteger", [left[0], right[0], left[2], right[2]])
        self._substitute(node, self._node("Mul", [self._as_float(product), self._node("Mul", [left[1], right[1]])]), product)

    def make_hard(self, op: Op) -> None:
        """Let the saturation of a quantizer cut the two corners of a hard sigmoid, for which the runtime has no integer kernel.

        `clip(alpha x + beta, 0, 1) = alpha clip(x + beta / alpha, 0, 1 / alpha)`: a grid from 0 to 1 / alpha cuts the sum, and
        its codes are read with the factor alpha in their scale.
        """
        node = self._nodes[op.name]
        alpha, beta = _slope(node)
        source = node.inputs[0]
        assert source is not None
        shifted = self._node("Add", [source, self._constant_code(beta / alpha)])
        if op.op_type == "HardSigmoid":
            self._factors[op.output] = alpha
            self._substitute(node, shifted, shifted)
        else:
            product = self._node("Mul", [source, self._quantized(shifted, Range(1 / INTEGER_MOST, 0), alpha)])
            self._substitute(node, product, product)

    def _constant_code(self, value: float) -> ir.Value:
        """A positive number as the largest code of a grid."""
        code, scale = np.uint8(INTEGER_MOST), np.float32(value / INTEGER_MOST)
        return self._node("DequantizeLinear", [self._scalar(number) for number in (code, scale, np.uint8(0))])

    def add_barrier(self, name: str, tensor: str, input_range: Range) -> None:
        """Keep the runtime from rewriting a float node that stands between quantized tensors; values stay as they are."""
        node, source = self._nodes[name], self._values[tensor]
        node.replace_input_with(list(node.inputs).index(source), self._barrier(source, input_range))

    def _barrier(self, source: ir.Value, grid: Range) -> ir.Value:
        if grid.zero_point == 0:
            return self._node("Relu", [source])
        limits = [self._scalar(np.float32(bound)) for bound in (-ENDLESS, ENDLESS)]
        return self._node("Clip", [source, *limits])

    def quantize_tensor(self, tensor: str, grid: Range, held: bool) -> None:
        """Put one quantizer behind a tensor; every reader, and the graph's output, takes the dequantized value.

        Args:
            held: keep the runtime from moving the quantizer to before the operator that gives the tensor.
        """
        value = self._values[tensor]
        readers = [(use.node, use.idx) for use in value.uses()]
        dequantized = self._quantized(self._barrier(value, grid) if held else value, grid, self._factors.get(tensor, 1.0))
        for node, index in readers:
            node.replace_input_with(index, dequantized)
        if value.is_graph_output():
            self._replace_output(value, dequantized)

    def _quantized(self, value: ir.Value, grid: Range, factor: float) -> ir.Value:
        """`factor * value`, rounded to a grid."""
        code = np.uint8 if grid.bits == INTEGER_BITS else np.uint16
        zero_point = self._scalar(np.int8(0) if grid.signed else code(grid.zero_point))
        codes = self._node("QuantizeLinear", [value, self._scalar(np.float32(grid.scale / factor)), zero_point])
        return self._node("DequantizeLinear", [codes, self._scalar(np.float32(grid.scale)), zero_point])

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

    def _replace_dynamic(self, layer: Layer, node: ir.Node, weight: QuantizedTensor, bias: ir.Value | None) -> None:
        source = node.inputs[0]
        assert source is not None
        turned = weight if layer.channel_axis == 1 else replace(weight, codes=weight.codes.T, axis=1)
        self._encodings[layer.name], codes = self._codes(turned)
        found, scale, zero_point = self._found_grid(source)
        zero_points = [self._initializer(weight.zero_point.numpy())] if weight.zero_point.any() else []
        product = self._node("MatMulInteger", [found, codes, zero_point, *zero_points])
        scales = self._node("Mul", [scale, self._initializer(weight.scale.numpy())])
        result = self._node("Mul", [self._as_float(product), scales])
        self._substitute(node, result if bias is None else self._node("Add", [result, bias]), product)

    def _replace_lookup(self, layer: Layer, node: ir.Node, weight: QuantizedTensor) -> None:
        rows = node.inputs[1]
        assert rows is not None
        self._encodings[layer.name], codes = self._codes(weight)
        value = self._as_float(self._node("Gather", [codes, rows]))
        if weight.zero_point.any():
            value = self._node("Sub", [value, self._looked_up(weight.zero_point.float(), rows)])
        self._substitute(node, self._node("Mul", [value, self._looked_up(weight.scale, rows)]))

    def _looked_up(self, parameter: Tensor, rows: ir.Value) -> ir.Value:
        """The scale or zero point of each row that was gathered."""
        if not parameter.dim():
            return self._initializer(parameter.numpy())
        return self._node("Gather", [self._initializer(parameter[:, None].numpy()), rows])

    def _replace_blocks(self, layer: Layer, node: ir.Node, weight: QuantizedTensor, bias: ir.Value | None) -> None:
        """Codes stay packed at run time and are widened block by block; the activations stay float32."""
        source = node.inputs[0]
        assert source is not None
        blocks = pack_blocks(weight)
        self._encodings[layer.name] = f"blocks-int{blocks.bits}"
        parts = (blocks.codes, blocks.scale, blocks.zero_point)
        stored = [None if part is None else self._initializer(part) for part in parts]
        sizes = {"K": blocks.inputs, "N": blocks.codes.shape[0], "bits": blocks.bits, "block_size": blocks.size}
        inputs = [source, *stored, *([] if bias is None else [None, bias])]
        # Without the layer's name, which a product has that the runtime itself turns into this operator with 8-bit activations.
        self._substitute(node, self._node("MatMulNBits", inputs, {**sizes, "accuracy_level": FLOAT32_LEVEL}, domain=RUNTIME))
        self._model.opset_imports[RUNTIME] = 1

    def _found_grid(self, source: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a tensor on a grid that is found at run time, once for all that read it."""
        if source not in self._found:
            codes = self._node("DynamicQuantizeLinear", [source], outputs=3)
            found = codes.producer()
            assert found is not None
            self._found[source] = (found.outputs[0], found.outputs[1], found.outputs[2])
        return self._found[source]

    def _as_float(self, value: ir.Value) -> ir.Value:
        return self._node("Cast", [value], {"to": ir.DataType.FLOAT.value})

    def _substitute(self, node: ir.Node, result: ir.Value, named: ir.Value | None = None) -> None:
        """Let everything that reads a node's output read another value.

        Args:
            named: output of the operator that takes over the node's name.
        """
        old = node.outputs[0]
        self._values[str(old.name)] = result
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, result)
        if old.is_graph_output():
            self._replace_output(old, result)
        self._graph.remove(node, safe=True)
        producer = named.producer() if named is not None else None
        if producer is not None:
            producer.name = node.name

    def _fit_axes(self, node: ir.Node, before: int, after: int) -> None:
        """Where `Reshape` takes the axes of a sequence apart again, its shape ends with the number of channels."""
        readers = [use.node for use in node.outputs[0].uses()] if node.op_type == "Gemm" and before != after else []
        for reader in readers:
            shape = reader.inputs[1].const_value if reader.op_type == "Reshape" and reader.inputs[1] is not None else None
            if shape is not None and shape.numpy()[-1] == before:
                reader.replace_input_with(1, self._initializer(np.append(shape.numpy()[:-1], after)))

    def _float_weight(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        """The values of the codes, computed once at load."""
        self._encodings[layer.name], codes = self._codes(weight)
        value = self._as_float(codes)
        if weight.zero_point.any():
            value = self._node("Sub", [value, self._initializer(_along(weight.zero_point.float(), weight).numpy())])
        return self._node("Mul", [value, self._initializer(_along(weight.scale, weight).numpy())])

    def _float_bias(self, compressed: CompressedLayer) -> ir.Value | None:
        return None if compressed.bias is None else self._initializer(compressed.bias.numpy())

    def _dequantized_weight(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        encoding, codes = self._codes(weight)
        self._encodings[layer.name] = encoding
        if weight.zero_point.any() and _fits_byte(weight):
            codes = self._node("Sub", [codes, self._initializer(_along(weight.zero_point, weight).numpy())])
            weight = replace(weight, zero_point=torch.zeros_like(weight.zero_point))
        inputs = [codes, self._initializer(weight.scale.numpy().astype(np.float32))]
        if weight.zero_point.any() or layer.kind == "linear":  # the runtime fuses a Gemm only with its zero points spelled out
            inputs.append(self._initializer(weight.zero_point.numpy()))
        axis: dict[str, int | str] = {"axis": weight.axis} if weight.scale.dim() else {}
        return self._node("DequantizeLinear", inputs, axis)

    def _dequantized_bias(self, compressed: CompressedLayer, weight: QuantizedTensor, grid: Range) -> ir.Value | None:
        """The kernel adds the bias to its int32 sum, so it must lie on exactly that sum's grid."""
        if compressed.bias is None:
            return None
        stored = [self._initializer(part) for part in integer_bias(compressed.bias, weight, grid)]
        return self._node("DequantizeLinear", stored, {"axis": 0})

    def _codes(self, weight: QuantizedTensor) -> tuple[str, ir.Value]:
        """The smaller of dense and packed sparse storage, as the int8 numbers that a kernel computes with."""
        levels = weight.levels.numpy()
        named = weight.codebook is not None and weight.bits <= 4 and self._capabilities.codebooks
        bits = 4 if named or (weight.bits <= 4 and weight.codebook is None) else 8
        codes, table = (weight.codes.numpy(), weight.codebook) if named else (levels, None)
        name = f"codebook{bits}" if named else f"int{bits}"
        sparse = self._capabilities.packed_sparse and _sparse_bytes(levels, bits) < _dense_bytes(levels, bits)
        if sparse and not weight.zero_point.any():
            return f"sparse-{name}", self._expanded(codes, levels != 0, bits, table)
        return name, self._stored(codes, bits, table)

    def _stored(self, codes: NDArray[np.int8], bits: int, table: Tensor | None) -> ir.Value:
        """Codes in 4 or 8 bits each, and with a table the levels that they name."""
        if bits == 8:
            return self._initializer(codes)
        kind = ir.DataType.INT4 if table is None else ir.DataType.UINT4
        packed = self._register(ir.PackedTensor(_pack_nibbles(codes.reshape(-1)), kind, shape=ir.Shape(codes.shape)))
        if table is None:
            return self._node("Cast", [packed], {"to": ir.DataType.INT8.value})
        names = self._node("Cast", [packed], {"to": ir.DataType.INT32.value})
        return self._node("Gather", [self._initializer(table.numpy()), names])

    def _expanded(self, codes: NDArray[np.int8], kept: NDArray[np.bool_], bits: int, table: Tensor | None) -> ir.Value:
        """Codes from a bit mask and the packed non-zeros, which go to the places that the mask names.

        A runtime keeps what it folds until the whole file is loaded, so what stands between is bytes, except for the indices of
        the non-zeros (int64): a running sum of the mask in their place takes twice the memory (EfficientNet-Lite0).

        Args:
            kept: bool, shape of the codes: which are not 0, or do not name it.
        """
        flat, stays = codes.reshape(-1), kept.reshape(-1)
        mask = self._initializer(np.packbits(stays, bitorder="little")[:, None])
        places = self._shared("places", lambda: np.arange(8, dtype=np.uint8))
        shifted = self._node("BitShift", [mask, places], {"direction": "RIGHT"})  # (bytes, 8), the lowest bit first
        bit_rows = self._node("BitwiseAnd", [shifted, self._scalar(np.uint8(1))])
        row = self._node("Reshape", [bit_rows, self._shared("flat", lambda: np.array([-1]))])
        zeros = self._node("Expand", [self._scalar(np.int8(0)), self._initializer(np.array([1, len(flat)]))])
        indices, packed = self._node("NonZero", [row]), flat[stays][None].astype(np.int8)
        indices.type = ir.TensorType(ir.DataType.INT64)
        indices.shape = ir.Shape(packed.shape)  # what is of unknown size is not folded
        values = self._node("ScatterElements", [zeros, indices, self._stored(packed, bits, table)], {"axis": 1})
        return self._node("Reshape", [values, self._initializer(np.array(codes.shape))])

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | str] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes or {}, domain=domain, num_outputs=outputs, name="")
        for value in node.outputs:
            self._count += 1
            value.name = f"v{self._count}"
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


def _slope(node: ir.Node) -> tuple[float, float]:
    """Alpha and beta of a hard sigmoid; those inside a hard swish are fixed."""
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    return node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)


def _along(parameter: Tensor, weight: QuantizedTensor) -> Tensor:
    """Scale or zero point of a whole weight or of its channels, shaped to broadcast over the codes."""
    if not parameter.dim():
        return parameter
    return parameter.reshape([-1 if axis == weight.axis else 1 for axis in range(weight.codes.dim())])


def _fits_byte(weight: QuantizedTensor) -> bool:
    """Whether every level that occurs is a signed byte also without its zero point."""
    moved = weight.levels.int() - _along(weight.zero_point.int(), weight)
    return not moved.numel() or bool(moved.min() >= -128 and moved.max() <= 127)


def _pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte, the first in the low half (ONNX INT4 and UINT4)."""
    padded = np.concatenate([codes, np.zeros(len(codes) % 2, np.int8)]).view(np.uint8) & np.uint8(0xF)
    return padded[0::2] | (padded[1::2] << np.uint8(4))


def _dense_bytes(levels: NDArray[np.int8], bits: int) -> int:
    return math.ceil(levels.size * bits / 8)


def _sparse_bytes(levels: NDArray[np.int8], bits: int) -> int:
    """Mask, packed non-zeros, and the operators that expand them."""
    return math.ceil(levels.size / 8) + math.ceil(np.count_nonzero(levels) * bits / 8) + 8 * NODE_BYTES
