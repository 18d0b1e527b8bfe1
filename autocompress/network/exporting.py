"""Exports a module to the FP32 file, of which only what is computed is kept."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from autocompress.errors import ExportError
from autocompress.network.graph import BaseGraph
from autocompress.network.normalize import normalize
from autocompress.network.onnx_file import constant, is_float, save, values
from autocompress.network.reading import read

OPSET = 21
"""First opset with INT4 tensors."""


def export(model: torch.nn.Module, example_input: torch.Tensor, path: Path) -> BaseGraph:
    """Export the module in eval mode, strip what only describes its origin, and save it.

    The batch axis is left open when the model allows it.

    Raises:
        ExportError: the model fails, gives something else than one tensor with an entry for each example, or does not export;
            names the operator when the exporter does.
    """
    _check_forward(model.eval(), example_input[:1])
    exported, batch = _export_any_batch(model, example_input)
    _check_ends(model, exported)
    _name_transposed(model, exported)
    normalize(exported)
    _strip(exported)
    _rename(exported)
    save(exported, path)
    return read(path, exported, batch)


def _check_forward(model: torch.nn.Module, example: torch.Tensor) -> None:
    who, shape = f"model {type(model).__name__}", tuple(example.shape)
    try:
        with torch.no_grad():
            given = model(example.clone())
    except Exception as error:
        raise ExportError(f"{who} fails on an input of shape {shape}: {_first_line(error)}") from error
    if not isinstance(given, torch.Tensor):
        kind = f"{type(given).__name__} with {len(given)} entries" if isinstance(given, Sized) else type(given).__name__
        raise ExportError(f"{who} gives a {kind}; expected one tensor: wrap it in a module that takes and returns one tensor")
    if not given.ndim or len(given) != 1:
        raise ExportError(f"{who} gives shape {tuple(given.shape)} for one example; expected (1, ...)")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:1])}"


def _export_any_batch(model: torch.nn.Module, example: torch.Tensor) -> tuple[ir.Model, int | None]:
    pair = example[:1].expand(2, *example.shape[1:]).contiguous()
    try:
        return _export(model, pair, ({0: torch.export.Dim("batch")},)), None
    except Exception as open_batch:
        try:
            return _export(model, example[:1], None), 1
        except Exception as error:
            raise ExportError(_export_message(model, error)) from open_batch


def _export(model: torch.nn.Module, example: torch.Tensor, shapes: Any) -> ir.Model:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False, optimize=True
        )
    assert program is not None
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's log to itself: what matters of it is in the error, and an open batch may fail without harm."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _check_ends(model: torch.nn.Module, exported: ir.Model) -> None:
    ends = len(exported.graph.inputs), len(exported.graph.outputs)
    if ends != (1, 1):
        raise ExportError(
            f"model {type(model).__name__} has {ends[0]} input and {ends[1]} output tensors; expected one of each: "
            "wrap it in a module that takes and returns one tensor"
        )


def _export_message(model: torch.nn.Module, error: Exception) -> str:
    """The deepest cause; the exporter wraps it in pages of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause))
    reason = f"operator {operator[1]} has no ONNX form" if operator else _first_line(cause)
    return (
        f"model {type(model).__name__} does not export to ONNX opset {OPSET}: {reason}; "
        "try torch.onnx.export(model, (example,), dynamo=True) for the full report"
    )


def _strip(model: ir.Model) -> None:
    """Remove stack traces, file paths and names of the author's source: they are a tenth of a small model's bytes."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "autocompress", None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.name = "g"
    for domain in [domain for domain in model.opset_imports if domain]:
        del model.opset_imports[domain]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in values(model):
        value.metadata_props.clear()
        value.doc_string = None


def _name_transposed(module: torch.nn.Module, model: ir.Model) -> None:
    """Name the weights of linear layers that read sequences: the exporter transposes them and drops the name."""
    linear = {
        f"{name}.weight": part.weight.detach().numpy().T
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and f"{name}.weight" not in model.graph.initializers
    }
    for value in list(model.graph.initializers.values()):
        if is_float(value) and value.shape is not None and value.shape.rank() == 2:
            found = [name for name, weight in linear.items() if np.array_equal(weight, constant(value))]
            if found:
                value.name = found[0]
                del linear[found[0]]


def _rename(model: ir.Model) -> None:
    """Short names for operators and activations: in a small model names outweigh 4-bit weights."""
    model.graph.inputs[0].name = "input"
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        for position, value in enumerate(node.outputs):
            value.name = f"t{index}" if position == 0 else f"t{index}_{position}"
    model.graph.outputs[0].name = "output"
