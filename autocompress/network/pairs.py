"""Layers that follow each other directly, so that a factor can move from the weight of one to the weight of the other."""

from __future__ import annotations

import onnx_ir as ir

from autocompress.network.graph import BaseGraph, Layer, LayerPair

HOMOGENEOUS = frozenset({"", "Relu"})
"""What a positive factor passes through, f(s x) = s f(x). A Clip is not among them: its upper bound stays where it is."""


def layer_pairs(graph: BaseGraph) -> list[LayerPair]:
    """Pairs in the order of execution, each with nothing or a Relu in between, of which the second is the only reader."""
    readers = {layer.input: layer for layer in graph.layers.values()}
    values = {str(value.name): value for node in graph.open().graph for value in node.outputs}
    found = []
    for layer in graph.layers.values():
        reader, activation = readers.get(layer.output), _activation(layer, values[layer.output])
        if reader is not None and activation in HOMOGENEOUS and _is_read_once(values[layer.output]):
            found.append(LayerPair(layer.name, reader.name, activation))
    return found


def _activation(layer: Layer, output: ir.Value) -> str:
    """The operator that was absorbed into the layer's output; empty: none."""
    producer = output.producer()
    assert producer is not None
    return "" if producer.name == layer.node else producer.op_type


def _is_read_once(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()
