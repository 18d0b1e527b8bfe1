"""Writes a policy's tensors into the exported graph, so that the runtime computes what was decided and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from autocompress.building.grid_lowering import GridLowering
from autocompress.building.layer_lowering import LayerLowering
from autocompress.building.onnx_edit import OnnxEdit
from autocompress.components import Capabilities
from autocompress.network.graph import BaseGraph
from autocompress.network.placement import HARD, Placement
from autocompress.tensors.compress import CompressedModel

POOL = "MaxPool"
"""The runtime moves a quantizer from behind a float one to before it, where its integer kernel is many times slower."""


@dataclass(frozen=True)
class Lowered:
    """An edited graph.

    Attributes:
        encodings: layer to how its weight is stored, see `LayerLowering`.
    """

    model: ir.Model
    encodings: Mapping[str, str]


def lower(graph: BaseGraph, compressed: CompressedModel, placement: Placement, capabilities: Capabilities) -> Lowered:
    """Write compressed tensors and their placement into a fresh copy of the base graph."""
    edit = OnnxEdit(graph.open())
    layers, grids = LayerLowering(edit, capabilities), GridLowering(edit)
    for name, layer in graph.layers.items():
        if name in compressed.layers:
            grid = compressed.ranges.get(placement.quantized.get(layer.input, ""))
            layers.replace(layer, compressed.layers[name], placement.modes.get(name), grid)
    for op in graph.ops:
        if op.name in placement.dynamic:
            layers.make_dynamic(op.name)
    for op in graph.ops:
        if op.op_type in HARD and op.name in placement.integer:
            grids.make_hard(op)
    for node, tensor in placement.barriers.items():
        grids.add_barrier(node, tensor, compressed.ranges[placement.quantized[tensor]])
    held = _held(graph, placement) if capabilities.barriers else ()
    moved = _moved(graph, placement, capabilities) if capabilities.moves_codes else ()
    for tensor, source in placement.quantized.items():
        if tensor not in moved:
            grids.quantize_tensor(tensor, compressed.ranges[source], held=tensor in held)
    return Lowered(edit.finish(), layers.encodings)


def _held(graph: BaseGraph, placement: Placement) -> set[str]:
    """What float pools give."""
    return {op.output for op in graph.ops if op.op_type == POOL and op.name not in placement.integer}


def _moved(graph: BaseGraph, placement: Placement, capabilities: Capabilities) -> set[str]:
    """What operators that only move codes give."""
    movers = [op for op in graph.ops if op.op_type in capabilities.passthrough_ops and op.name in placement.integer]
    return {name for op in movers for name in op.outputs}
