"""Which observer gives a tensor's range: the tensors where observers differ, and the choices that a policy then carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autocompress.components import Capabilities
from autocompress.network.graph import BaseGraph
from autocompress.network.placement import place
from autocompress.policy import INTEGER_BITS, Policy
from autocompress.tensors.ranges import Range

NOTICED = 0.05
"""Ranges whose ends differ by less than this share of the wider one are alike: 5 % more step is 0.4 dB more rounding noise."""


@dataclass(frozen=True)
class ObserverPolicy:
    """One way in which tensors that share a grid get their range.

    Attributes:
        observer: its name; None: the configured one.
        tensors: activation tensors that share a grid while every layer is integer, the one that the grid is of first.
        layers: which make these tensors integer: those that read or write one of them, or all where only operators do.
        ops: operators that read one of them.
    """

    observer: str | None
    tensors: tuple[str, ...]
    layers: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()

    @property
    def decisions(self) -> dict[str, str]:
        """The part of `Policy.observers` that says so."""
        return {} if self.observer is None else dict.fromkeys(self.tensors, self.observer)

    @property
    def alone(self) -> Policy:
        """FP32 but for the tensor, which is rounded to this observer's range; no operator rounds anything else for it."""
        tensor, *_ = self.tensors
        observers = {} if self.observer is None else {tensor: self.observer}
        return Policy(ops=dict.fromkeys(self.ops, "float"), tensors={tensor: INTEGER_BITS}, observers=observers)


def observer_options(
    graph: BaseGraph, capabilities: Capabilities, integer: Policy, ranges: Mapping[str, Mapping[str, Range]]
) -> dict[str, tuple[ObserverPolicy, ...]]:
    """The options of each set of tensors that share a grid, where observers find ranges that differ noticeably.

    Args:
        integer: a policy whose layers are all integer.
        ranges: observer to the grid that it finds for each tensor, the configured observer first.

    Returns:
        The tensor that the grid is of, to the options, the configured observer first.
    """
    shared: dict[str, list[str]] = {}
    for tensor, source in place(graph, integer, capabilities).quantized.items():
        shared.setdefault(source, []).append(tensor)
    found = {
        source: tuple(
            _option(graph, integer, observer, [source, *(name for name in tensors if name != source)])
            for observer in _distinct({name: grids[source] for name, grids in ranges.items()})
        )
        for source, tensors in shared.items()
    }
    return {source: options for source, options in found.items() if len(options) > 1}


def _option(graph: BaseGraph, integer: Policy, observer: str | None, tensors: Sequence[str]) -> ObserverPolicy:
    layers = [graph.layers[name] for name in integer.layers]
    beside = [layer.name for layer in layers if layer.input in tensors or layer.output in tensors]
    readers = [op.name for op in graph.ops if set(op.inputs) & set(tensors)]
    return ObserverPolicy(observer, tuple(tensors), tuple(beside or integer.layers), tuple(readers))


def _distinct(ranges: Mapping[str, Range]) -> list[str | None]:
    """The configured observer, as None, then each whose range differs from all before it."""
    configured, *others = ranges
    kept = [configured]
    for name in others:
        if not any(_alike(ranges[name], ranges[known]) for known in kept):
            kept.append(name)
    return [None, *kept[1:]]


def _alike(one: Range, other: Range) -> bool:
    ends = one.ends, other.ends
    width = max(high - low for low, high in ends)
    return all(abs(a - b) < NOTICED * width for a, b in zip(*ends, strict=True))


def merged_observers(choices: Iterable[ObserverPolicy]) -> dict[str, str]:
    """`Policy.observers` for one choice of each set of tensors."""
    return {tensor: observer for choice in choices for tensor, observer in choice.decisions.items()}


def in_effect(graph: BaseGraph, policy: Policy, capabilities: Capabilities) -> Policy:
    """The policy without observers of tensors that have no grid of their own in its file."""
    if not policy.observers:
        return policy
    used = frozenset[str]().union(*place(graph, policy, capabilities).ranges.values())
    return replace(policy, observers={name: observer for name, observer in policy.observers.items() if name in used})
