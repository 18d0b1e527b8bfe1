"""Runs a file in OpenVINO's CPU plugin. Self-contained: standard library, numpy and openvino only.

The process that measures executes this file without autocompress, and a remote device can do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino

INTEGER_TYPES = frozenset({"u8", "i8"})

PRODUCT = "/WithoutBiases"
"""The name of a node with a bias ends so, or goes on after it, once the runtime has taken the sum out of it."""

PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    # Else a processor with bfloat16 would compute the FP32 file in that.
    "INFERENCE_PRECISION_HINT": "f32",
    # Else a matrix whose weights are stored in codes would round its activations to 8 bits.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    # The measuring process is held on its cores already; OpenVINO would move its threads to the first ones, busy or not.
    "ENABLE_CPU_PINNING": False,
}


class _Compiled(NamedTuple):
    """A compiled graph.

    Attributes:
        single: whether it was compiled for one example, though the file takes any number.
        stacked: for each output whether its first axis counts examples.
    """

    graph: Any
    single: bool
    stacked: Sequence[bool]


def version() -> str:
    """The runtime's name and version."""
    return f"openvino {openvino.__version__.split('-', 1)[0]}"


def load(path: str, threads: int, optimize: bool) -> Callable[[Sequence[Any]], list[Any]]:
    """Compile a model file for one example at a time, which is faster than for any number of them.

    Args:
        threads: threads of one inference.
        optimize: False computes quantizers as the float operators that they are, to check the integer kernels.

    Returns:
        A function from the input arrays, in the graph's order, to the output arrays. It takes several examples one by one.
    """
    compiled = _compiled(path, threads, optimize)
    request = compiled.graph.create_infer_request()

    def infer(inputs: Sequence[Any]) -> list[Any]:
        return list(request.infer(list(inputs)).values())

    def run(inputs: Sequence[Any]) -> list[Any]:
        if not compiled.single or len(inputs[0]) == 1:
            return infer(inputs)
        parts = [infer([array[at : at + 1] for array in inputs]) for at in range(len(inputs[0]))]
        outputs = zip(*parts, strict=True)
        return [np.concatenate(found) if many else found[0] for found, many in zip(outputs, compiled.stacked, strict=True)]

    return run


def integer_nodes(path: str, inputs: Sequence[Any]) -> list[str]:
    """Names of the nodes that the compiled graph computes in integers.

    One operator of the compiled graph stands for several nodes of the file and names all of them.
    """
    operators = _compiled(path, 1, True).graph.get_runtime_model().get_ordered_ops()
    return [name for operator in operators for name in _integer_names(operator.get_rt_info())]


def _integer_names(info: Any) -> list[str]:
    """Nodes of an operator that reads bytes with an integer kernel; a float product may read its weights in bytes too."""
    told = {key: info[key].astype(str) if key in info else "" for key in ("runtimePrecision", "primitiveType")}
    if told["runtimePrecision"] not in INTEGER_TYPES or not told["primitiveType"].lower().endswith("i8"):
        return []
    return [name.split(PRODUCT, 1)[0] for name in info["originalLayersNames"].astype(str).split(",") if name]


def _compiled(path: str, threads: int, optimize: bool) -> _Compiled:
    file = Path(path).stat()
    return _compile(path, file.st_mtime_ns, file.st_size, threads, optimize)


@lru_cache(maxsize=4)  # compiling takes seconds, and each measurement of a trial opens the file anew
def _compile(path: str, modified: int, size: int, threads: int, optimize: bool) -> _Compiled:
    model = _core().read_model(path)
    stacked = [_counts_examples(output.partial_shape) for output in model.outputs]
    shapes = [value.partial_shape for value in model.inputs]
    single = all(_counts_examples(shape) and openvino.PartialShape(list(shape)[1:]).is_static for shape in shapes)
    if single:
        model.reshape({index: openvino.PartialShape([1, *list(shape)[1:]]) for index, shape in enumerate(shapes)})
    return _Compiled(_core().compile_model(model, "CPU", _settings(threads, optimize)), single, stacked)


def _settings(threads: int, optimize: bool) -> dict[str, Any]:
    return {**PROPERTIES, "INFERENCE_NUM_THREADS": threads} | ({} if optimize else {"LP_TRANSFORMS_MODE": "NO"})


@cache
def _core() -> openvino.Core:
    """The only one of the process, and it stays.

    Each brings a signal stack and takes it along. Where they do not end in the order in which they began, the next signal
    that Python hears, Ctrl-C too, is a segmentation fault.
    """
    return openvino.Core()


def _counts_examples(shape: Any) -> bool:
    return bool(shape.rank.is_static and len(shape) and shape[0].is_dynamic)
