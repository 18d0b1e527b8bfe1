"""Which operators compute in integers, and which tensors are quantized for them.

A layer is integer when the policy gives its weight codes; then its input and output are quantized. An operator without
weights follows its inputs. A tensor has one quantizer, shared by all its readers, so precision changes only where it must.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from autocompress.components import Capabilities
from autocompress.graph import BaseGraph, Op
from autocompress.policy import Policy

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that a runtime may make integer by itself, also when their weight is shared and they are no layer."""


@dataclass(frozen=True)
class Placement:
    """The consequences of a policy for the graph.

    Attributes:
        integer: names of the nodes that compute in integers.
        quantized: activation tensor to the tensor whose scale it uses (itself, unless an operator only moved values).
        barriers: node that stays float to its quantized input; the runtime would otherwise make the node integer.
    """

    integer: frozenset[str]
    quantized: dict[str, str]
    barriers: dict[str, str]


def place(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> Placement:
    """Work out the placement of a policy on a graph."""
    layers = [layer for layer in graph.layers.values() if is_integer(policy, layer.name)]
    quantized = {name: name for layer in layers for name in _ends(graph, layer.kind, layer.input, layer.output)}
    integer = {layer.node for layer in layers}
    for op in graph.ops:
        if _op_is_integer(op, policy, capabilities, quantized):
            integer.add(op.name)
            source = quantized[op.inputs[0]] if op.op_type in capabilities.passthrough_ops else op.output
            _share(quantized, op.output, source)
    return Placement(frozenset(integer), quantized, _barriers(graph, capabilities, integer, quantized))


def is_integer(policy: Policy, layer: str) -> bool:
    """Whether the policy quantizes the layer's weight."""
    return layer in policy.layers and policy.layers[layer].quantizer is not None


def quantizable(graph: BaseGraph, capabilities: Capabilities) -> tuple[str, ...]:
    """Tensors that some policy may quantize: those need a range."""
    ops = [op for op in graph.ops if op.op_type in capabilities.integer_ops | capabilities.passthrough_ops]
    names = [name for layer in graph.layers.values() for name in (*layer.activations, layer.output)]
    return tuple(dict.fromkeys([*names, *(name for op in ops for name in (*op.inputs, op.output))]))


def _ends(graph: BaseGraph, kind: str, source: str, result: str) -> Collection[str]:
    """A matrix product that gives the model's output writes float directly; a convolution has no such kernel."""
    return (source,) if kind == "linear" and result in graph.outputs else (source, result)


def _op_is_integer(op: Op, policy: Policy, capabilities: Capabilities, quantized: Collection[str]) -> bool:
    able = _has_kernel(op, capabilities) or op.op_type in capabilities.passthrough_ops
    ready = all(name in quantized for name in op.inputs) and op.output != "output"
    return able and ready and policy.ops.get(op.name, "integer") == "integer"


def _has_kernel(op: Op, capabilities: Capabilities) -> bool:
    return op.op_type in capabilities.integer_ops and not op.constant


def _barriers(
    graph: BaseGraph, capabilities: Capabilities, integer: Collection[str], quantized: Collection[str]
) -> dict[str, str]:
    barriers = {layer.node: layer.input for layer in graph.layers.values() if layer.input in quantized}
    for op in graph.ops:
        tempting = _has_kernel(op, capabilities) or op.op_type in WEIGHTED
        if tempting and all(name in quantized for name in (*op.inputs, op.output)):
            barriers[op.name] = op.inputs[0]
    return {node: tensor for node, tensor in barriers.items() if node not in integer}


def _share(quantized: dict[str, str], output: str, source: str) -> None:
    """Give a tensor a quantizer. One that a reader already asked for keeps its own range only if the operator computes."""
    previous = quantized.get(output)
    quantized[output] = source
    if previous == output and source != output:
        for name in [name for name, used in quantized.items() if used == output]:
            quantized[name] = source
