"""Model files that the user gives to be measured: what can be told of one before a runtime opens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autocompress.errors import ConfigError


def read_onnx(path: Path) -> onnx.ModelProto:
    """The parsed file.

    Raises:
        ConfigError: it is not there, is no ONNX model, or keeps tensors in other files: its size would say nothing.
    """
    if not path.is_file():
        raise ConfigError(f"artifact={path}: no such file; expected an ONNX file")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own, and that of each of its implementations
        raise ConfigError(f"artifact={path}: expected an ONNX file; this is something else ({type(error).__name__})") from error
    if model.ir_version <= 0 or not model.graph.node:
        raise ConfigError(f"artifact={path}: expected an ONNX file; this is something else (no graph)")
    outside = sorted({tensor.name for tensor in _tensors(model.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL})
    if outside:
        raise ConfigError(
            f"artifact={path}: tensor '{outside[0]}' lies in another file; expected all in one: "
            "onnx.save(onnx.load(path), path, save_as_external_data=False)"
        )
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of a graph and of the graphs within its operators."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def check_fits(path: Path, model: onnx.ModelProto, shape: Sequence[int], dtype: np.dtype[Any], batch: int | None) -> None:
    """Refuse a file that does not take the inputs of a task.

    Args:
        shape, dtype: of one example, without the batch.
        batch: that of the task's own file; None: any.

    Raises:
        ConfigError: it takes several inputs, or one of another shape or type.
    """
    own = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in own]
    if len(inputs) != 1 or not model.graph.output:
        ends = f"{len(inputs)} inputs and {len(model.graph.output)} outputs"
        raise ConfigError(f"artifact={path}: it has {ends}; expected one input, and outputs")
    given, kind = inputs[0].type.tensor_type, onnx.helper.np_dtype_to_tensor_dtype(dtype)
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in given.shape.dim]
    fits = not given.HasField("shape") or _fit(sizes, (batch, *shape))
    if given.elem_type != kind or not fits:
        written = ", ".join("any" if size is None else str(size) for size in sizes)
        expected = ", ".join(map(str, ("any" if batch is None else batch, *shape)))
        raise ConfigError(
            f"artifact={path}: its input is {_type_name(given.elem_type)} of shape ({written}); "
            f"expected {dtype} of shape ({expected}), as the configured model's"
        )


def _fit(sizes: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    return len(sizes) == len(expected) and all(size in (None, wanted) for size, wanted in zip(sizes, expected, strict=True))


def _type_name(kind: int) -> str:
    known = onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(kind).lower() if kind in known else f"type {kind}"
