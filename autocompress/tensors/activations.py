"""The values of the tensors between the layers, as the FP32 file computes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from autocompress.components import Target
from autocompress.measuring.runner import load_session
from autocompress.network.graph import BaseGraph
from autocompress.network.onnx_file import save
from autocompress.task import Task

INPUT = "input"
"""The graph's own input, which no file has to give."""


def activations(
    graph: BaseGraph, task: Task, target: Target, names: Sequence[str], folder: Path
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Values of the named tensors on the calibration set, a batch at a time."""
    path = folder / "observed.onnx"
    save(_exposed(graph.open(), names), path)
    session = load_session(target, path, threads=torch.get_num_threads())
    size = graph.batch or _batch_size(graph, task)
    for inputs, _ in task.sets["calibration"].batches(size):
        outputs = session([inputs.numpy()])[1:]
        yield dict(zip([name for name in names if name != INPUT], outputs, strict=True)) | {INPUT: inputs.numpy()}
    path.unlink()


def _exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Make the named tensors outputs, after the model's own."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        if name == INPUT:
            continue
        value = values[name]
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.is_graph_output():
            value = _copied(model, value)
        model.graph.outputs.append(value)
    return model


def _copied(model: ir.Model, value: ir.Value) -> ir.Value:
    """A graph may not list one tensor twice among its outputs."""
    node = ir.node("Identity", [value], name=f"{value.name}_copy")
    node.outputs[0].name = f"{value.name}_copy"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(node)
    return node.outputs[0]


def _batch_size(graph: BaseGraph, task: Task) -> int:
    """Examples at a time, so that all activations together stay near 100 MB."""
    macs = sum(layer.macs for layer in graph.layers.values())
    pixels = math.prod(task.example_input.shape[1:])
    return 32 if macs < 100e6 and pixels < 50_000 else 4
