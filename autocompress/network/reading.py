"""Finds the layers of an exported model and the operators between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from autocompress.network.graph import EMBEDDING, TRANSPOSED, WEIGHT_INPUT, BaseGraph, Layer, Op
from autocompress.network.onnx_file import constant, is_float
from autocompress.network.sequences import sizes

ACTIVATIONS = frozenset({"Relu", "Clip"})

_CONVOLUTIONS = {3: "conv1d", 4: "conv2d", 5: "conv3d"}


def read(path: Path, model: ir.Model, batch: int | None) -> BaseGraph:
    """Describe a graph that carries the shapes of its tensors."""
    absorbed = _absorbed(model)
    layers = [_layer(node, absorbed) for node in model.graph if _weight(node) is not None]
    nodes = {layer.node for layer in layers} | {node.name for node in absorbed.values()}
    ops = [_op(node, absorbed) for node in model.graph if node.name not in nodes and is_float(node.outputs[0])]
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    return BaseGraph(
        path=path,
        data=path.read_bytes(),
        batch=batch,
        layers={layer.name: layer for layer in layers},
        ops=tuple(op for op in ops if op.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        initializers={name: constant(model.graph.initializers[name]) for name in names},
    )


def _absorbed(model: ir.Model) -> dict[str, ir.Node]:
    """Tensor to the activation that is its only reader, when the pair can be one quantized operator."""
    found = {}
    for node in model.graph:
        users = [use.node for use in node.outputs[0].uses()]
        foldable = node.op_type not in ACTIVATIONS and not node.outputs[0].is_graph_output()
        if foldable and len(users) == 1 and users[0].op_type in ACTIVATIONS and _reaches_zero(users[0]):
            found[str(node.outputs[0].name)] = users[0]
    return found


def _reaches_zero(node: ir.Node) -> bool:
    """Whether the activation cuts at zero, so that a quantizer's range does the same work."""
    if node.op_type == "Relu":
        return True
    lower = node.inputs[1] if len(node.inputs) > 1 else None
    return lower is not None and lower.const_value is not None and float(lower.const_value.numpy()) == 0.0


def _output(node: ir.Node, absorbed: dict[str, ir.Node]) -> str:
    name = str(node.outputs[0].name)
    return str(absorbed[name].outputs[0].name) if name in absorbed else name


def _weight(node: ir.Node) -> ir.Value | None:
    """The weight of an operator that is a layer.

    A grouped transposed convolution is none: the axis that has a scale for each channel would run across its groups.
    """
    if node.op_type not in WEIGHT_INPUT or len(node.inputs) < 2:
        return None
    weight = node.inputs[WEIGHT_INPUT[node.op_type]]
    odd = {"Gemm": ("transA", 0), "Gather": ("axis", 0), "ConvTranspose": ("group", 1)}
    name, usual = odd.get(node.op_type, ("", 0))
    if weight is None or not _is_own_parameter(weight) or (name and node.attributes.get_int(name, usual) != usual):
        return None
    matrix = len(weight.shape or ()) == 2
    return weight if matrix or node.op_type in {"Conv", "ConvTranspose"} else None


def _is_own_parameter(value: ir.Value) -> bool:
    """Whether it is a float initializer that only one operator reads: a shared weight has no single input to calibrate on."""
    return value.is_initializer() and is_float(value) and len(list(value.uses())) == 1


def _layer(node: ir.Node, absorbed: dict[str, ir.Node]) -> Layer:
    weight, source = _weight(node), node.inputs[1 if node.op_type == "Gather" else 0]
    assert weight is not None and source is not None
    shape = constant(weight).shape
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    groups = node.attributes.get_int("group", 1) or 1
    return Layer(
        name=str(weight.name).removesuffix(".weight"),
        kind=_kind(node, shape, groups),
        node=str(node.name),
        weight=str(weight.name),
        bias=str(bias.name) if bias is not None else None,
        shape=shape,
        channel_axis=_channel_axis(node),
        groups=groups,
        macs=_macs(node, shape),
        input=str(source.name),
        output=_output(node, absorbed),
        **_geometry(node, len(shape) - 2),
    )


def _geometry(node: ir.Node, axes: int) -> dict[str, tuple[int, ...]]:
    if node.op_type not in {"Conv", "ConvTranspose"}:
        return {}
    defaults = {"strides": (1,) * axes, "dilations": (1,) * axes, "pads": (0,) * (2 * axes)}
    found = {name: tuple(node.attributes.get_ints(name, default)) for name, default in defaults.items()}
    extended = (0,) * axes + tuple(node.attributes.get_ints("output_padding", (0,) * axes))
    return found | {"pads": tuple(size - more for size, more in zip(found["pads"], extended, strict=True))}


def _kind(node: ir.Node, shape: Sequence[int], groups: int) -> str:
    kinds = {"Gather": EMBEDDING, "ConvTranspose": TRANSPOSED, "Gemm": "linear", "MatMul": "linear"}
    if node.op_type in kinds:
        return kinds[node.op_type]
    return "depthwise" if groups > 1 and shape[1] == 1 else _CONVOLUTIONS.get(len(shape), "conv")


def _channel_axis(node: ir.Node) -> int:
    if node.op_type in {"Conv", "Gather"}:
        return 0
    return 0 if node.op_type == "Gemm" and _integer(node, "transB") else 1


def _integer(node: ir.Node, attribute: str) -> int:
    """An integer attribute, 0 when it is absent."""
    return node.attributes.get_int(attribute, None) or 0


def _macs(node: ir.Node, shape: Sequence[int]) -> int:
    """Weights times the positions that each is used at, for one example."""
    return 0 if node.op_type == "Gather" else math.prod(shape) * math.prod(size or 1 for size in _positions(node))


def _positions(node: ir.Node) -> list[int | None]:
    """Lengths of the axes along which a weight is used again and again; a `Flatten` may have joined some with the batch."""
    if node.op_type == "ConvTranspose":  # the whole weight, at each place of the input
        return sizes(node.inputs[0])[2:]
    if node.op_type == "Conv":
        return sizes(node.outputs[0])[2:]
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    joined = before is not None and before.op_type == "Flatten"
    return sizes(before.inputs[0])[1 : _integer(before, "axis")] if before and joined else sizes(node.outputs[0])[1:-1]


def _op(node: ir.Node, absorbed: dict[str, ir.Node]) -> Op:
    given = [value for value in node.inputs if value is not None]
    inputs = tuple(str(value.name) for value in given if value.const_value is None and is_float(value))
    constant = any(value.const_value is not None and is_float(value) for value in given)
    others = tuple(str(value.name) for value in node.outputs[1:] if is_float(value))
    return Op(str(node.name), node.op_type, inputs, _output(node, absorbed), constant, others)
