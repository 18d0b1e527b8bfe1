"""ONNX models as bytes: written without what a runtime finds out by itself, read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from autocompress.guarding.whole_file import write_whole


def save(model: ir.Model, path: Path) -> None:
    """Write a model without the types and shapes of inner tensors: a runtime infers them, or reads them off the weights.

    How many values are not zero it cannot infer, and then it does not compute once what is the same in every inference.
    """
    counted = [value for node in model.graph if node.op_type == "NonZero" for value in node.outputs]
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs, *counted)}
    shapes = [(value, value.shape, value.type) for value in values(model) if id(value) not in kept]
    for value, _, _ in shapes:
        value.shape, value.type = None, None
    write_whole(path, ir.serde.serialize_model(model).SerializeToString(), lasting=False)  # made again whenever it is needed
    for value, shape, type_ in shapes:
        value.shape, value.type = shape, type_


def opened(data: bytes) -> ir.Model:
    """A model that may be edited, from the bytes of a file."""
    import onnx

    return ir.serde.deserialize_model(onnx.load_from_string(data))


def values(model: ir.Model) -> Iterator[ir.Value]:
    """All tensors of a model."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def constant(value: ir.Value) -> NDArray[Any]:
    """The array of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def is_float(value: ir.Value) -> bool:
    """Whether it holds activations or weights; a model that computes shapes has integer tensors too."""
    return value.dtype in {ir.DataType.FLOAT, None}
