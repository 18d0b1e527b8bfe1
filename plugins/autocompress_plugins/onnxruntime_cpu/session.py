"""Runs a file in ONNX Runtime. Self-contained: standard library, numpy and onnxruntime only.

The process that measures executes this file without autocompress, and a remote device can do the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

INTEGER_OPERATORS = frozenset(
    {"MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits", "QGemm", "DynamicQuantizeMatMul"}
)


def version() -> str:
    """The runtime's name and version."""
    return f"onnxruntime {onnxruntime.__version__}"


def load(path: str, threads: int, optimize: bool, providers: Sequence[str]) -> Callable[[Sequence[Any]], list[Any]]:
    """Open a model file with the runtime's default options.

    Args:
        threads: threads of one inference.
        optimize: False switches graph optimization off, to check the optimizer's work.
        providers: execution providers in order of preference.

    Returns:
        A function from the input arrays, in the graph's order, to the output arrays.
    """
    session = _open(path, threads, optimize, providers)
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Any]) -> list[Any]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def integer_nodes(path: str, inputs: Sequence[Any], providers: Sequence[str]) -> list[str]:
    """Names of the nodes that the optimized graph computed in integers while it ran `inputs`, from the runtime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1, optimize=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    return [_node_name(event["name"]) for event in kernels if _is_integer(event["args"]["op_name"])]


def _node_name(event: str) -> str:
    """Name that the file gave to the node; the runtime appends `_token_<n>` when it rewrites one."""
    return event.removesuffix("_kernel_time").split("_token_", 1)[0]


def _is_integer(operator: str) -> bool:
    return operator.startswith("QLinear") or operator in INTEGER_OPERATORS


def _open(path: str, threads: int, optimize: bool, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, _options(threads, optimize), providers=list(providers))


def _options(threads: int, optimize: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
