"""Linear layers on sequences: exported as a matrix product and an addition, rewritten as one operator with a bias.

Only one operator can be integer as a whole: a runtime that sees the product alone leaves the addition to float, and ONNX
Runtime joins the two by itself in a way that its integer kernels cannot use. The joint operator takes matrices, so `Flatten`
joins all axes but the last before it, and `Reshape` takes them apart again; both only rename what is in memory.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def join_biases(model: ir.Model) -> None:
    """Rewrite every such pair in place; layers that read the same tensor read it flattened once."""
    flat: dict[ir.Value, ir.Value] = {}
    for product in list(model.graph):
        found = _bias(product)
        if found is not None:
            _join(model.graph, product, *found, flat)


def sizes(value: ir.Value | None) -> list[int | None]:
    """The length of each axis, None where it is open; empty when the shape is unknown."""
    shape = value.shape if value is not None else None
    return [size if isinstance(size, int) else None for size in shape] if shape is not None else []


def _bias(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The addition and what it adds: it alone reads the product of sequence and matrix, and adds a constant row."""
    if product.op_type != "MatMul" or product.outputs[0].is_graph_output() or not _is_sequence(sizes(product.inputs[0])):
        return None
    readers, weight = [use.node for use in product.outputs[0].uses()], product.inputs[1]
    if weight is None or not weight.is_initializer() or len(sizes(weight)) != 2:
        return None
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    rows = [value for value in readers[0].inputs if value is not None and value.is_initializer()]
    return (readers[0], rows[0]) if rows and sizes(rows[0]) == sizes(weight)[1:] else None


def _is_sequence(lengths: list[int | None]) -> bool:
    """Whether `Reshape` can restore all axes: at most the first may be open."""
    return len(lengths) > 2 and None not in lengths[1:]


def _join(graph: ir.Graph, product: ir.Node, add: ir.Node, bias: ir.Value, flat: dict[ir.Value, ir.Value]) -> None:
    source, weight = product.inputs[0], product.inputs[1]
    assert source is not None and weight is not None
    inner, columns = sizes(source)[1:-1], sizes(weight)[1]
    if source not in flat:
        flat[source] = _insert(graph, product, "Flatten", [source], [None, sizes(source)[-1]], {"axis": len(inner) + 1})
    matrix = _insert(graph, add, "Gemm", [flat[source], weight, bias], [None, columns])
    shape = ir.Value(name=f"{add.outputs[0].name}:shape", const_value=ir.tensor(np.array([-1, *inner, columns])))
    shape.shape, shape.type = ir.Shape([len(inner) + 2]), ir.TensorType(ir.DataType.INT64)
    graph.register_initializer(shape)
    result = _insert(graph, add, "Reshape", [matrix, shape], [None, *inner, columns])
    result.shape, result.name = add.outputs[0].shape, add.outputs[0].name
    ir.convenience.replace_all_uses_with(add.outputs[0], result, replace_graph_outputs=True)
    graph.remove([add, product], safe=True)


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    shape: list[int | None],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes=attributes or {})
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), inputs[0].type
    graph.insert_before(before, node)
    return node.outputs[0]
