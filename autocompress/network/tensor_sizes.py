"""How many values each activation tensor of the FP32 graph holds for one example."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import shape_inference

from autocompress.network.graph import BaseGraph


def tensor_sizes(graph: BaseGraph) -> Mapping[str, int]:
    """Tensor name to its number of values; an axis of open length counts once. A tensor of unknown shape is left out."""
    model = shape_inference.infer_shapes(onnx.load_from_string(graph.data))
    known = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {value.name: _count(value) for value in known if value.type.tensor_type.HasField("shape")}


def _count(value: onnx.ValueInfoProto) -> int:
    return math.prod(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
