"""Rewrites of an exported graph that keep its results and free it of numbers that compression would make wrong."""

from __future__ import annotations

import math

import onnx_ir as ir

from autocompress.network.sequences import join_biases


def normalize(model: ir.Model) -> None:
    """Apply every rewrite in place."""
    join_biases(model)
    for node in list(model.graph):
        if node.op_type == "Reshape" and _flattens(node):
            _replace(model, node, [("Flatten", {"axis": 1})])
        elif node.op_type == "ReduceMean" and _averages_space(node):
            _replace(model, node, [("GlobalAveragePool", {}), *_dropped_space(node)])


def _flattens(node: ir.Node) -> bool:
    """Whether the reshape keeps the batch axis and joins the others: its constant holds the number of channels."""
    before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
    if before is None or after is None or len(after) != 2 or len(before) < 2 or before[0] != after[0]:
        return False
    inner = before[1:]
    return all(isinstance(size, int) for size in inner) and math.prod(int(str(size)) for size in inner) == after[1]


def _averages_space(node: ir.Node) -> bool:
    """Whether the mean is over all axes of an image: the pooling operator has an integer kernel, the mean has none."""
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    before = _shape(node.inputs[0])
    return axes is not None and before is not None and len(before) == 4 and _positive(axes, 4) == [2, 3]


def _positive(axes: ir.TensorProtocol, rank: int) -> list[int]:
    return sorted(int(axis) % rank for axis in axes.numpy().reshape(-1))


def _dropped_space(node: ir.Node) -> list[tuple[str, dict[str, int]]]:
    keeps = node.attributes.get_int("keepdims", 1)
    return [] if keeps else [("Flatten", {"axis": 1})]


def _shape(value: ir.Value | None) -> list[object] | None:
    return list(value.shape) if value is not None and value.shape is not None else None


def _replace(model: ir.Model, node: ir.Node, chain: list[tuple[str, dict[str, int]]]) -> None:
    """Put a chain of operators in the place of one; the last takes over its output."""
    source = node.inputs[0]
    new: list[ir.Node] = []
    for op_type, attributes in chain:
        new.append(ir.node(op_type, [source], attributes=attributes))
        source = new[-1].outputs[0]
    assert source is not None
    source.shape, source.type, source.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
    model.graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
