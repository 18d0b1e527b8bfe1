"""What sits between layers: connected operators without weights, which one decision makes integer or float together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autocompress.components import Capabilities
from autocompress.network.graph import BaseGraph, Layer, Op
from autocompress.network.placement import has_kernel, place
from autocompress.policy import Policy, Precision


@dataclass(frozen=True)
class RegionPolicy:
    """One way in which the operators of equal regions compute.

    Attributes:
        precision: `follow`: integer where all inputs are quantized anyway; `float`; `integer`: inputs are quantized for it.
        ops: names of the operators that a policy then names; none for `follow`.
    """

    precision: Literal["follow", "float", "integer"] = "follow"
    ops: tuple[str, ...] = ()

    @property
    def decisions(self) -> dict[str, Precision]:
        """The part of `Policy.ops` that says so."""
        return {} if self.precision == "follow" else dict.fromkeys(self.ops, self.precision)


def region_options(graph: BaseGraph, capabilities: Capabilities, integer: Policy) -> dict[str, tuple[RegionPolicy, ...]]:
    """The options of each kind of region that has more than one.

    Regions are of one kind when operator types and neighbours are the same, whatever their sizes: the blocks of a net share a
    decision. A kind is left out when no option changes what is integer while all layers are.

    Args:
        integer: a policy whose layers are all integer.

    Returns:
        Operator types and the first operator's name, for example `Mul-Sigmoid.n1`, to the options, `follow` first.
    """
    found: dict[object, list[Op]] = {}
    for region in find_regions(graph, capabilities):
        found.setdefault(_signature(region, graph), []).extend(region)
    options = {_name(ops): _useful(ops, graph, capabilities, integer) for ops in found.values()}
    return {name: useful for name, useful in options.items() if len(useful) > 1}


def find_regions(graph: BaseGraph, capabilities: Capabilities) -> list[list[Op]]:
    """Sets of operators that can be integer and hand values to each other, at least one of which computes or joins."""
    regions: list[list[Op]] = []
    for op in graph.ops:
        if not (_has_choice(op, capabilities) or op.op_type in capabilities.passthrough_ops):
            continue
        sources = [region for region in regions if any(set(other.outputs) & set(op.inputs) for other in region)]
        regions = [region for region in regions if region not in sources] + [[*_flat(sources), op]]
    return [region for region in regions if any(_has_choice(op, capabilities) for op in region)]


def _has_choice(op: Op, capabilities: Capabilities) -> bool:
    return has_kernel(op, capabilities) or op.op_type in capabilities.joining_ops


def _flat(regions: Iterable[Iterable[Op]]) -> list[Op]:
    return [op for region in regions for op in region]


def _signature(region: list[Op], graph: BaseGraph) -> object:
    """Operator types, and what gives the region its inputs and reads its outputs."""
    read, given = {name for op in region for name in op.inputs}, {name for op in region for name in op.outputs}
    inner = {op.name for op in region}
    others = [op for op in graph.ops if op.name not in inner]
    before = {_kind(x) for x in graph.layers.values() if x.output in read}
    after = {_kind(x) for x in graph.layers.values() if x.input in given}
    before |= {op.op_type for op in others if read & set(op.outputs)}
    after |= {op.op_type for op in others if given & set(op.inputs)}
    return frozenset(op.op_type for op in region), frozenset(before), frozenset(after)


def _kind(layer: Layer) -> str:
    """Kind of a neighbour; a convolution of a single position, as in a squeeze-excite block, is one of its own."""
    return f"{layer.kind} of one position" if layer.uses == 1 else layer.kind


def _name(ops: list[Op]) -> str:
    return f"{'-'.join(sorted({op.op_type for op in ops}))}.{ops[0].name}"


def _useful(ops: list[Op], graph: BaseGraph, capabilities: Capabilities, integer: Policy) -> tuple[RegionPolicy, ...]:
    """`integer` may equal `follow` while all layers are integer, but not any more when some are float."""
    computing = tuple(op.name for op in ops if has_kernel(op, capabilities))
    options = RegionPolicy("float", tuple(op.name for op in ops)), RegionPolicy("integer", computing)
    usual = place(graph, integer, capabilities)
    stays, asked = (place(graph, Policy(integer.layers, ops=option.decisions), capabilities) != usual for option in options)
    kept = options if stays else options[1:] if asked else ()
    return (RegionPolicy(), *(option for option in kept if option.ops))


def merged(choices: Iterable[RegionPolicy]) -> dict[str, Precision]:
    """`Policy.ops` for one choice of each kind of region."""
    return {op: precision for choice in choices for op, precision in choice.decisions.items()}
