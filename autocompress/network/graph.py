"""The exported FP32 graph: made once, then only edited. Layers, activation tensors, and what is around them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from autocompress.artifact import Artifact
from autocompress.network.onnx_file import opened

EMBEDDING = "embedding"
TRANSPOSED = "conv_transpose"
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
        return opened(self.data)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Activation tensors that layers and operators read or give."""
        touched = [name for layer in self.layers.values() for name in (*layer.activations, layer.output)]
        touched += [name for op in self.ops for name in (*op.inputs, *op.outputs)]
        return tuple(dict.fromkeys(touched))
