"""The exported FP32 graph: made once, then only edited. Layers, activation tensors, and what is around them."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from autocompress.artifact import Artifact
from autocompress.errors import ExportError
from autocompress.guarding.whole_file import write_whole
from autocompress.network.normalize import normalize
from autocompress.network.sequences import sizes

OPSET = 21
"""First opset with INT4 tensors."""

ACTIVATIONS = frozenset({"Relu", "Clip"})
EMBEDDING = "embedding"
TRANSPOSED = "conv_transpose"
_CONVOLUTIONS = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operators that can be a layer, and the position of their weight among the inputs."""


@dataclass(frozen=True)
class Layer:
    """An operator with a weight.

    Attributes:
        name: path of the module, as in the weight's name.
        kind: conv1d, conv2d, conv3d, depthwise, conv_transpose, linear or embedding.
        node: name of the operator in the graph.
        weight, bias: names of the initializers; bias None: there is none.
        shape: shape of the weight.
        channel_axis: axis of the output channels in the weight; of an embedding, of the rows that it looks up.
        groups: groups of a convolution, else 1.
        macs: multiply-accumulates for one example; an embedding has none.
        input: the activation tensor that it reads; of an embedding, the integers that number the rows.
        output: the tensor that it gives, after an activation that folds into it.
        strides, dilations: of a convolution, one for each axis of space.
        pads: of a convolution, zeros before each axis of space, then after each; of a transposed one, what is cut off its
            result there, negative where it is extended.
    """

    name: str
    kind: str
    node: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    channel_axis: int
    groups: int
    macs: int
    input: str
    output: str
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def uses(self) -> int:
        """How often each weight is used for one example: once where a convolution has a single position."""
        return self.macs // max(1, self.parameters)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.shape[self.channel_axis]

    @property
    def activations(self) -> tuple[str, ...]:
        """The float tensors that it reads: its input, unless it looks up rows."""
        return () if self.kind == EMBEDDING else (self.input,)


@dataclass(frozen=True)
class Op:
    """An operator without a weight that is searched.

    Attributes:
        name: its name in the graph.
        op_type: its ONNX type.
        inputs: the activation tensors that it reads.
        output: the tensor that it gives, after an activation that folds into it.
        constant: whether it also computes with a float constant, which no integer kernel takes.
        others: the tensors that it gives besides, as `Split` does.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    constant: bool = False
    others: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All tensors that it gives."""
        return (self.output, *self.others)


@dataclass(frozen=True)
class LayerPair:
    """Two layers of which the second is the only reader of the first, with nothing but an activation between them.

    Attributes:
        activation: ONNX type of what is between them; empty: nothing.
    """

    first: str
    second: str
    activation: str


@dataclass(frozen=True)
class BaseGraph:
    """The FP32 file and what is known about it. The file is the reference that every ratio is taken against.

    Attributes:
        path: the FP32 model, stripped of metadata.
        data: its bytes.
        batch: the batch size of the file, None when any is accepted.
        layers: by name, in the order of execution.
        ops: the other operators, in the order of execution.
        outputs: names of the graph's outputs.
        initializers: weights and biases of the layers by initializer name.
    """

    path: Path
    data: bytes = field(repr=False)
    batch: int | None
    layers: dict[str, Layer]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    initializers: dict[str, NDArray[np.float32]] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """Hash of the FP32 file: two models are the same when it is."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def artifact(self) -> Artifact:
        """The FP32 file as it was written."""
        return Artifact(self.path, "onnx", len(self.data), self.digest)

    def open(self) -> ir.Model:
        """A fresh copy that may be edited."""
        return ir.serde.deserialize_model(_proto(self.data))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Activation tensors that layers and operators read or give."""
        touched = [name for layer in self.layers.values() for name in (*layer.activations, layer.output)]
        touched += [name for op in self.ops for name in (*op.inputs, *op.outputs)]
        return tuple(dict.fromkeys(touched))


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
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _name_transposed(module: torch.nn.Module, model: ir.Model) -> None:
    """Name the weights of linear layers that read sequences: the exporter transposes them and drops the name."""
    linear = {
        f"{name}.weight": part.weight.detach().numpy().T
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and f"{name}.weight" not in model.graph.initializers
    }
    for value in list(model.graph.initializers.values()):
        if _is_float(value) and value.shape is not None and value.shape.rank() == 2:
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


def save(model: ir.Model, path: Path) -> None:
    """Write a model without the types and shapes of inner tensors: a runtime infers them, or reads them off the weights.

    How many values are not zero it cannot infer, and then it does not compute once what is the same in every inference.
    """
    counted = [value for node in model.graph if node.op_type == "NonZero" for value in node.outputs]
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs, *counted)}
    shapes = [(value, value.shape, value.type) for value in _values(model) if id(value) not in kept]
    for value, _, _ in shapes:
        value.shape, value.type = None, None
    write_whole(path, ir.serde.serialize_model(model).SerializeToString(), lasting=False)  # made again whenever it is needed
    for value, shape, type_ in shapes:
        value.shape, value.type = shape, type_


def _proto(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)


def read(path: Path, model: ir.Model, batch: int | None) -> BaseGraph:
    """Describe a graph that carries the shapes of its tensors."""
    absorbed = _absorbed(model)
    layers = [_layer(node, absorbed) for node in model.graph if _weight(node) is not None]
    nodes = {layer.node for layer in layers} | {node.name for node in absorbed.values()}
    ops = [_op(node, absorbed) for node in model.graph if node.name not in nodes and _is_float(node.outputs[0])]
    names = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    return BaseGraph(
        path=path,
        data=path.read_bytes(),
        batch=batch,
        layers={layer.name: layer for layer in layers},
        ops=tuple(op for op in ops if op.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        initializers={name: constant(model.graph.initializers[name]) for name in names},
    )


def constant(value: ir.Value) -> NDArray[Any]:
    """The array of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _absorbed(model: ir.Model) -> dict[str, ir.Node]:
    """Tensor to the activation that is its only reader, when the pair can be one quantized operator."""
    found = {}
    for node in model.graph:
        users = [use.node for use in node.outputs[0].uses()]
        foldable = node.op_type not in ACTIVATIONS and not node.outputs[0].is_graph_output()
        if foldable and len(users) == 1 and users[0].op_type in ACTIVATIONS and _reaches_zero(users[0]):
            found[str(node.outputs[0].name)] = users[0]
    return found


def _reaches_zero(node: ir.Node) -> bool:
    """Whether the activation cuts at zero, so that a quantizer's range does the same work."""
    if node.op_type == "Relu":
        return True
    lower = node.inputs[1] if len(node.inputs) > 1 else None
    return lower is not None and lower.const_value is not None and float(lower.const_value.numpy()) == 0.0


def _output(node: ir.Node, absorbed: dict[str, ir.Node]) -> str:
    name = str(node.outputs[0].name)
    return str(absorbed[name].outputs[0].name) if name in absorbed else name


def _weight(node: ir.Node) -> ir.Value | None:
    """The weight of an operator that is a layer.

    A grouped transposed convolution is none: the axis that has a scale for each channel would run across its groups.
    """
    if node.op_type not in WEIGHT_INPUT or len(node.inputs) < 2:
        return None
    weight = node.inputs[WEIGHT_INPUT[node.op_type]]
    odd = {"Gemm": ("transA", 0), "Gather": ("axis", 0), "ConvTranspose": ("group", 1)}
    name, usual = odd.get(node.op_type, ("", 0))
    if weight is None or not _is_own_parameter(weight) or (name and node.attributes.get_int(name, usual) != usual):
        return None
    matrix = len(weight.shape or ()) == 2
    return weight if matrix or node.op_type in {"Conv", "ConvTranspose"} else None


def _is_own_parameter(value: ir.Value) -> bool:
    """Whether it is a float initializer that only one operator reads: a shared weight has no single input to calibrate on."""
    return value.is_initializer() and _is_float(value) and len(list(value.uses())) == 1


def _layer(node: ir.Node, absorbed: dict[str, ir.Node]) -> Layer:
    weight, source = _weight(node), node.inputs[1 if node.op_type == "Gather" else 0]
    assert weight is not None and source is not None
    shape = constant(weight).shape
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    groups = node.attributes.get_int("group", 1) or 1
    return Layer(
        name=str(weight.name).removesuffix(".weight"),
        kind=_kind(node, shape, groups),
        node=str(node.name),
        weight=str(weight.name),
        bias=str(bias.name) if bias is not None else None,
        shape=shape,
        channel_axis=_channel_axis(node),
        groups=groups,
        macs=_macs(node, shape),
        input=str(source.name),
        output=_output(node, absorbed),
        **_geometry(node, len(shape) - 2),
    )


def _geometry(node: ir.Node, axes: int) -> dict[str, tuple[int, ...]]:
    if node.op_type not in {"Conv", "ConvTranspose"}:
        return {}
    defaults = {"strides": (1,) * axes, "dilations": (1,) * axes, "pads": (0,) * (2 * axes)}
    found = {name: tuple(node.attributes.get_ints(name, default)) for name, default in defaults.items()}
    extended = (0,) * axes + tuple(node.attributes.get_ints("output_padding", (0,) * axes))
    return found | {"pads": tuple(size - more for size, more in zip(found["pads"], extended, strict=True))}


def _kind(node: ir.Node, shape: Sequence[int], groups: int) -> str:
    kinds = {"Gather": EMBEDDING, "ConvTranspose": TRANSPOSED, "Gemm": "linear", "MatMul": "linear"}
    if node.op_type in kinds:
        return kinds[node.op_type]
    return "depthwise" if groups > 1 and shape[1] == 1 else _CONVOLUTIONS.get(len(shape), "conv")


def _channel_axis(node: ir.Node) -> int:
    if node.op_type in {"Conv", "Gather"}:
        return 0
    return 0 if node.op_type == "Gemm" and _integer(node, "transB") else 1


def _integer(node: ir.Node, attribute: str) -> int:
    """An integer attribute, 0 when it is absent."""
    return node.attributes.get_int(attribute, None) or 0


def _macs(node: ir.Node, shape: Sequence[int]) -> int:
    """Weights times the positions that each is used at, for one example."""
    return 0 if node.op_type == "Gather" else math.prod(shape) * math.prod(size or 1 for size in _positions(node))


def _positions(node: ir.Node) -> list[int | None]:
    """Lengths of the axes along which a weight is used again and again; a `Flatten` may have joined some with the batch."""
    if node.op_type == "ConvTranspose":  # the whole weight, at each place of the input
        return sizes(node.inputs[0])[2:]
    if node.op_type == "Conv":
        return sizes(node.outputs[0])[2:]
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    joined = before is not None and before.op_type == "Flatten"
    return sizes(before.inputs[0])[1 : _integer(before, "axis")] if before and joined else sizes(node.outputs[0])[1:-1]


def _op(node: ir.Node, absorbed: dict[str, ir.Node]) -> Op:
    given = [value for value in node.inputs if value is not None]
    inputs = tuple(str(value.name) for value in given if value.const_value is None and _is_float(value))
    constant = any(value.const_value is not None and _is_float(value) for value in given)
    others = tuple(str(value.name) for value in node.outputs[1:] if _is_float(value))
    return Op(str(node.name), node.op_type, inputs, _output(node, absorbed), constant, others)


def _is_float(value: ir.Value) -> bool:
    """Whether it holds activations or weights; a model that computes shapes has integer tensors too."""
    return value.dtype in {ir.DataType.FLOAT, None}
