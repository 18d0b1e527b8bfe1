"""A model file with one convolution, float or integer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autocompress.network.exporting import OPSET
from autocompress.testing.batches import Array, normal


def write_convolution(path: Path, *, integer: bool) -> Array:
    """Write a convolution named `conv` with a Relu behind it, in float or between quantizers; returns its weight."""
    weight = (10 * normal(8, 4, 3, 3)).round().clip(-127, 127).astype(np.int8)
    kernel: Array = weight.astype(np.float32) * WEIGHT_STEP
    node = onnx.helper.make_node
    if integer:
        parts = [
            node("QuantizeLinear", ["input", "scale", "zero"], ["codes"]),
            node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
            node("DequantizeLinear", ["weight", "weight_scale"], ["kernel"]),
            node("Conv", ["values", "kernel"], ["sum"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["sum"], ["positive"]),
            node("QuantizeLinear", ["positive", "out_scale", "out_zero"], ["result"]),
            node("DequantizeLinear", ["result", "out_scale", "out_zero"], ["output"]),
        ]
        grids = {"scale": INPUT_STEP, "weight_scale": WEIGHT_STEP, "out_scale": OUTPUT_STEP}
        zeros = {"zero": np.uint8(INPUT_ZERO), "out_zero": np.uint8(0)}
        tensors = {"weight": weight, **{name: np.float32(step) for name, step in grids.items()}, **zeros}
    else:
        parts = [
            node("Conv", ["input", "kernel"], ["sum"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["sum"], ["output"]),
        ]
        tensors = {"kernel": kernel}
    _save_file(path, parts, tensors, ["N", 4, 6, 6], ["N", 8, 6, 6])
    return kernel


INPUT_STEP, INPUT_ZERO, WEIGHT_STEP = 0.05, 128, 0.02
OUTPUT_STEP = 0.1
"""Grids of the integer file of `write_convolution`; the output's zero point is 0."""


def _save_file(
    path: Path, nodes: Sequence[Any], tensors: dict[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", inputs), ("output", outputs))
    ]
    stored = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()]
    graph = onnx.helper.make_graph(list(nodes), "net", ends[:1], ends[1:], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10), path)
