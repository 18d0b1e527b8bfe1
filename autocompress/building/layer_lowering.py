"""Writes layers: weight and bias in the form in which the runtime computes as the policy says.

Rules proved on ONNX Runtime (DESIGN.md section 5):

* a static integer layer is `DequantizeLinear(weight) -> op -> QuantizeLinear`, its bias int32 on the grid scale_x * scale_w;
* a dynamic one is `DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul -> Add`; layers that read one tensor share the first;
* a weight that is only stored in codes is `Cast -> Mul`, which folds at load: small file, float kernel. `DequantizeLinear`
  would run at each inference before a convolution, and turn a matrix product into one with 8-bit activations;
* with a scale for each block of inputs it is `MatMulNBits` with its accuracy level written out, because otherwise the level is
  the runtime's choice;
* an embedding gathers codes and scales, and multiplies what it gathered: its table stays in codes at run time;
* a zero point is subtracted at load where the levels still fit a byte: kernels are fast, or exist at all, without one only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from autocompress.building.bias import integer_bias
from autocompress.building.blocks import FLOAT32_LEVEL, RUNTIME, pack_blocks
from autocompress.building.onnx_edit import OnnxEdit
from autocompress.building.weight_codes import write_codes
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.network.graph import EMBEDDING, WEIGHT_INPUT, Layer
from autocompress.policy import Activation
from autocompress.tensors.ranges import Range


@final
class LayerLowering:
    """The layers of one graph.

    Attributes:
        encodings: layer to how its weight is stored: float32, int8, int4, codebook4, blocks-int8, blocks-int4, or, as a bit
            mask and packed non-zeros, sparse-int8, sparse-int4, sparse-codebook4.
    """

    def __init__(self, edit: OnnxEdit, capabilities: Capabilities) -> None:
        self._edit, self._capabilities = edit, capabilities
        self.encodings: dict[str, str] = {}
        self._found: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def replace(self, layer: Layer, compressed: CompressedLayer, mode: Activation | None, input_range: Range | None) -> None:
        """Store the layer's weight and bias.

        Args:
            mode: how it computes when its weight has codes.
            input_range: grid of its input, when that is quantized.
        """
        node, weight = self._edit.nodes[layer.node], compressed.weight
        self._fit_axes(node, layer.channels, compressed.dense().shape[layer.channel_axis])
        if not isinstance(weight, QuantizedTensor):
            self.encodings[layer.name] = "float32"
            node.replace_input_with(WEIGHT_INPUT[node.op_type], self._edit.initializer(weight.numpy()))
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
        node = self._edit.nodes[name]
        left, right = (self._found_grid(value) for value in node.inputs if value is not None)
        product = self._edit.node("MatMulInteger", [left[0], right[0], left[2], right[2]])
        value, scale = self._edit.as_float(product), self._edit.node("Mul", [left[1], right[1]])
        self._edit.substitute(node, self._edit.node("Mul", [value, scale]), product)

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
        codes = self._codes(layer, turned)
        found, scale, zero_point = self._found_grid(source)
        zero_points = [self._edit.initializer(weight.zero_point.numpy())] if weight.zero_point.any() else []
        product = self._edit.node("MatMulInteger", [found, codes, zero_point, *zero_points])
        scales = self._edit.node("Mul", [scale, self._edit.initializer(weight.scale.numpy())])
        result = self._edit.node("Mul", [self._edit.as_float(product), scales])
        self._edit.substitute(node, result if bias is None else self._edit.node("Add", [result, bias]), product)

    def _replace_lookup(self, layer: Layer, node: ir.Node, weight: QuantizedTensor) -> None:
        rows = node.inputs[1]
        assert rows is not None
        value = self._edit.as_float(self._edit.node("Gather", [self._codes(layer, weight), rows]))
        if weight.zero_point.any():
            value = self._edit.node("Sub", [value, self._looked_up(weight.zero_point.float(), rows)])
        self._edit.substitute(node, self._edit.node("Mul", [value, self._looked_up(weight.scale, rows)]))

    def _looked_up(self, parameter: Tensor, rows: ir.Value) -> ir.Value:
        """The scale or zero point of each row that was gathered."""
        if not parameter.dim():
            return self._edit.initializer(parameter.numpy())
        return self._edit.node("Gather", [self._edit.initializer(parameter[:, None].numpy()), rows])

    def _replace_blocks(self, layer: Layer, node: ir.Node, weight: QuantizedTensor, bias: ir.Value | None) -> None:
        """Codes stay packed at run time and are widened block by block; the activations stay float32."""
        source = node.inputs[0]
        assert source is not None
        blocks = pack_blocks(weight)
        self.encodings[layer.name] = f"blocks-int{blocks.bits}"
        parts = (blocks.codes, blocks.scale, blocks.zero_point)
        stored = [None if part is None else self._edit.initializer(part) for part in parts]
        sizes = {"K": blocks.inputs, "N": blocks.codes.shape[0], "bits": blocks.bits, "block_size": blocks.size}
        attributes = {**sizes, "accuracy_level": FLOAT32_LEVEL}
        inputs = [source, *stored, *([] if bias is None else [None, bias])]
        # Without the layer's name, which a product has that the runtime itself turns into this operator with 8-bit activations.
        self._edit.substitute(node, self._edit.node("MatMulNBits", inputs, attributes, domain=RUNTIME))
        self._edit.model.opset_imports[RUNTIME] = 1

    def _found_grid(self, source: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a tensor on a grid that is found at run time, once for all that read it."""
        if source not in self._found:
            codes = self._edit.node("DynamicQuantizeLinear", [source], outputs=3)
            found = codes.producer()
            assert found is not None
            self._found[source] = (found.outputs[0], found.outputs[1], found.outputs[2])
        return self._found[source]

    def _fit_axes(self, node: ir.Node, before: int, after: int) -> None:
        """Where `Reshape` takes the axes of a sequence apart again, its shape ends with the number of channels."""
        readers = [use.node for use in node.outputs[0].uses()] if node.op_type == "Gemm" and before != after else []
        for reader in readers:
            shape = reader.inputs[1].const_value if reader.op_type == "Reshape" and reader.inputs[1] is not None else None
            if shape is not None and shape.numpy()[-1] == before:
                reader.replace_input_with(1, self._edit.initializer(np.append(shape.numpy()[:-1], after)))

    def _codes(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        self.encodings[layer.name], codes = write_codes(self._edit, weight, self._capabilities)
        return codes

    def _float_weight(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        """The values of the codes, computed once at load."""
        value = self._edit.as_float(self._codes(layer, weight))
        if weight.zero_point.any():
            value = self._edit.node("Sub", [value, self._edit.initializer(_along(weight.zero_point.float(), weight).numpy())])
        return self._edit.node("Mul", [value, self._edit.initializer(_along(weight.scale, weight).numpy())])

    def _float_bias(self, compressed: CompressedLayer) -> ir.Value | None:
        return None if compressed.bias is None else self._edit.initializer(compressed.bias.numpy())

    def _dequantized_weight(self, layer: Layer, weight: QuantizedTensor) -> ir.Value:
        codes = self._codes(layer, weight)
        if weight.zero_point.any() and _fits_byte(weight):
            codes = self._edit.node("Sub", [codes, self._edit.initializer(_along(weight.zero_point, weight).numpy())])
            weight = replace(weight, zero_point=torch.zeros_like(weight.zero_point))
        inputs = [codes, self._edit.initializer(weight.scale.numpy().astype(np.float32))]
        if weight.zero_point.any() or layer.kind == "linear":  # the runtime fuses a Gemm only with its zero points spelled out
            inputs.append(self._edit.initializer(weight.zero_point.numpy()))
        axis: dict[str, int | str] = {"axis": weight.axis} if weight.scale.dim() else {}
        return self._edit.node("DequantizeLinear", inputs, axis)

    def _dequantized_bias(self, compressed: CompressedLayer, weight: QuantizedTensor, grid: Range) -> ir.Value | None:
        """The kernel adds the bias to its int32 sum, so it must lie on exactly that sum's grid."""
        if compressed.bias is None:
            return None
        stored = [self._edit.initializer(part) for part in integer_bias(compressed.bias, weight, grid)]
        return self._edit.node("DequantizeLinear", stored, {"axis": 0})


def _along(parameter: Tensor, weight: QuantizedTensor) -> Tensor:
    """Scale or zero point of a whole weight or of its channels, shaped to broadcast over the codes."""
    if not parameter.dim():
        return parameter
    return parameter.reshape([-1 if axis == weight.axis else 1 for axis in range(weight.codes.dim())])


def _fits_byte(weight: QuantizedTensor) -> bool:
    """Whether every level that occurs is a signed byte also without its zero point."""
    moved = weight.levels.int() - _along(weight.zero_point.int(), weight)
    return not moved.numel() or bool(moved.min() >= -128 and moved.max() <= 127)
