"""A session module whose integer convolutions add pairs of products in 16 bits, as `vpmaddubsw` does on x86 without VNNI.

Each convolution between codes is written out in float32, which holds all its whole numbers: a convolution that gives every
product's input a channel of its own, one group of two inputs for each pair, a clip at 16 bits, and the sum of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

CPU = ["CPUExecutionProvider"]


def version() -> str:
    return f"saturating {onnxruntime.__version__}"


def load(path: str, threads: int, optimize: bool) -> Callable[[Sequence[Any]], list[Any]]:
    """Without optimization the file computes in float and is right, as in a real runtime."""
    model = onnx.load(path)
    if optimize:
        _saturate(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=CPU)
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))


def integer_nodes(path: str, inputs: Sequence[Any]) -> list[str]:
    model = onnx.load(path)
    return [node.name for node, *_ in _integer_convolutions(model)]


def _integer_convolutions(model: Any) -> list[tuple[Any, Any, Any]]:
    """Convolutions of one group with dequantized inputs and weights, and those two operators."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = [
        (node, makers.get(node.input[0]), makers.get(node.input[1])) for node in model.graph.node if node.op_type == "Conv"
    ]
    return [
        (node, values, weight)
        for node, values, weight in found
        if _attribute(node, "group", 1) == 1 and _dequantizes(values) and _dequantizes(weight)
    ]


def _dequantizes(node: Any) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(part) for part in node.attribute if part.name == name), default)


def _constants(model: Any, names: Sequence[str]) -> list[Any]:
    """Values of tensors that no input reaches."""
    stored = {part.name: numpy_helper.to_array(part) for part in model.graph.initializer if part.name in names}
    made = [name for name in names if name not in stored]
    if made:
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        del cut.graph.output[:], cut.graph.input[:]
        cut.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None) for name in made)
        del cut.graph.node[:]
        cut.graph.node.extend(_ancestors(model, made))
        session = onnxruntime.InferenceSession(cut.SerializeToString(), providers=CPU)
        stored |= dict(zip(made, session.run(None, {}), strict=True))
    return [stored[name] for name in names]


def _ancestors(model: Any, names: Sequence[str]) -> list[Any]:
    wanted, found = set(names), []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def _saturate(model: Any) -> None:
    for node, values, weight in _integer_convolutions(model):
        codes, weight_scale = _constants(model, [weight.input[0], weight.input[1]])
        scale, zero = _constants(model, [values.input[1], values.input[2]])
        nodes, constants = _written_out(node, values.input[0], codes, float(scale) * weight_scale, float(zero))
        index = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        for offset, new in enumerate(nodes):
            model.graph.node.insert(index + offset, new)
        model.graph.initializer.extend(constants)


def _written_out(node: Any, source: str, codes: Any, scales: Any, zero: float) -> tuple[list[Any], list[Any]]:
    outputs, size = codes.shape[0], int(np.prod(codes.shape[1:]))
    pairs = (size + 1) // 2
    rows = np.zeros((outputs, 2 * pairs), np.float32)
    rows[:, :size] = codes.reshape(outputs, size)
    apart = np.zeros((2 * pairs, *codes.shape[1:]), np.float32)
    apart.reshape(2 * pairs, size)[np.arange(size), np.arange(size)] = 1
    products = rows.reshape(outputs, pairs, 2).transpose(1, 0, 2).reshape(pairs * outputs, 2, *[1] * (codes.ndim - 2))
    total = np.tile(np.eye(outputs, dtype=np.float32), (1, pairs)).reshape(outputs, pairs * outputs, *[1] * (codes.ndim - 2))
    column = (1, outputs, *[1] * (codes.ndim - 2))
    bias = -zero * rows.sum(1)
    name, space = node.output[0], codes.ndim - 2
    pads = list(_attribute(node, "pads", [0] * 2 * space))
    arrays = {
        "pads": np.array([0, 0, *pads[:space], 0, 0, *pads[space:]]),
        "zero": np.float32(zero),
        "apart": apart,
        "products": products,
        "total": total,
        "low": np.float32(-32768),
        "high": np.float32(32767),
        "bias": bias.reshape(column).astype(np.float32),
        "scale": np.broadcast_to(scales, (outputs,)).reshape(column).astype(np.float32),
    }
    own = {key: f"{name}:{key}" for key in arrays}
    window = {key: _attribute(node, key, None) for key in ("strides", "dilations", "kernel_shape")}
    window = {key: value for key, value in window.items() if value is not None}
    last = f"{name}:scaled" if len(node.input) > 2 else name
    shape = np.array(column)
    nodes = [
        helper.make_node("Cast", [source], [f"{name}:codes"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Pad", [f"{name}:codes", own["pads"], own["zero"]], [f"{name}:padded"]),
        helper.make_node("Conv", [f"{name}:padded", own["apart"]], [f"{name}:apart_values"], **window),
        helper.make_node("Conv", [f"{name}:apart_values", own["products"]], [f"{name}:pairs"], group=pairs),
        helper.make_node("Clip", [f"{name}:pairs", own["low"], own["high"]], [f"{name}:clipped"]),
        helper.make_node("Conv", [f"{name}:clipped", own["total"]], [f"{name}:sums"]),
        helper.make_node("Add", [f"{name}:sums", own["bias"]], [f"{name}:whole"]),
        helper.make_node("Mul", [f"{name}:whole", own["scale"]], [last]),
    ]
    if len(node.input) > 2:
        arrays["shape"], own["shape"] = shape, f"{name}:shape"
        nodes.append(helper.make_node("Reshape", [node.input[2], own["shape"]], [f"{name}:biases"]))
        nodes.append(helper.make_node("Add", [last, f"{name}:biases"], [name]))
    return nodes, [numpy_helper.from_array(np.asarray(array), own[key]) for key, array in arrays.items()]
