"""Which options a goal has a use for on a device: what gains neither time nor bytes that it asks for leaves the space.

Dropping must be safe, so an option goes only where another one is at least as precise, and on every probed network, small
and large, no slower for sure; where bytes matter, also no larger. In doubt, or where nothing was probed, it stays: the tables
of the search measure the real network later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autocompress.budget import Budget
from autocompress.choices.options import stored_bytes
from autocompress.choices.space import SearchSpace
from autocompress.components import Components
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.regions import RegionPolicy
from autocompress.policy import LayerPolicy
from autocompress.probing.findings import Case, Finding, Findings, is_slower, may_be_faster

if TYPE_CHECKING:
    from autocompress.record import Objective


@dataclass(frozen=True)
class Uses:
    """What of a file a goal asks about, besides accuracy."""

    time: bool
    size: bool

    @classmethod
    def of(cls, objective: Objective, budget: Budget) -> Uses:
        """Every limit but those on latency and accuracy counts as one that bytes may help with."""
        limits = [name for name in budget.limits() if not name.startswith("accuracy")]
        timed = [name for name in limits if name.startswith("latency")]
        time, size = objective in ("latency", "pareto"), objective in ("size", "pareto")
        return cls(time or bool(timed), size or len(timed) < len(limits))

    def __str__(self) -> str:
        return "time and bytes" if self.time and self.size else "time only" if self.time else "bytes only"


def worthwhile(
    space: SearchSpace, graph: BaseGraph, components: Components, findings: Findings, uses: Uses
) -> tuple[SearchSpace, list[str]]:
    """The space without what gains nothing for the goal, and a sentence for each way of computing that left it."""
    judge = _Judge(components, findings, uses)
    layers = {name: judge.kept(graph.layers[name], options) for name, options in space.layers.items()}
    types = {op.name: op.op_type for op in graph.ops}
    ops = {name: judge.kept_ops(options, types) for name, options in space.ops.items()}
    found = replace(space, layers=layers, ops=ops)
    if found == space or not found.sizes:
        return space, judge.warnings()
    return replace(found, whole=space.digest), [*judge.warnings(), *judge.notes()]


class _Judge:
    """Goes through the options and remembers what it dropped."""

    def __init__(self, components: Components, findings: Findings, uses: Uses) -> None:
        self._components, self._findings, self._uses = components, findings, uses
        self._capabilities = components.target.capabilities()
        self._dropped: Counter[str] = Counter()

    def kept(self, layer: Layer, options: Sequence[LayerPolicy]) -> tuple[LayerPolicy, ...]:
        """The options of a layer that stay; at least one."""
        right = [option for option in options if not self._is_broken(layer, option)]
        stay = tuple(option for option in right if not any(self._replaces(other, option, layer) for other in right))
        for option in set(options) - set(stay):
            self._dropped[self._words(layer, option)] += 1
        return stay or (LayerPolicy(),)

    def kept_ops(self, options: Sequence[RegionPolicy], types: Mapping[str, str]) -> tuple[RegionPolicy, ...]:
        """Without computing in integers where each operator of a region is slower so."""
        return tuple(option for option in options if option.precision != "integer" or not self._all_slower(option, types))

    def notes(self) -> list[str]:
        """What left the space, and how many options that were."""
        return [
            f"{words}: not searched, the goal asks for {self._uses} ({count} options)"
            for words, count in sorted(self._dropped.items())
        ]

    def warnings(self) -> list[str]:
        """What adds up wrong here."""
        kinds, broken = self._findings.saturating(), sorted(self._findings.broken())
        found = [f"{kind}: integer kernels lose sums on this device, weights have at most 7 bits there" for kind in kinds]
        return [*found, *(f"{kind}, {mode}: wrong sums on this device, not searched" for kind, mode in broken)]

    def _is_broken(self, layer: Layer, option: LayerPolicy) -> bool:
        return option.quantizer is not None and (layer.kind, option.activation) in self._findings.broken()

    def _replaces(self, other: LayerPolicy, option: LayerPolicy, layer: Layer) -> bool:
        """Whether another option is more precise and for the goal at least as good."""
        if not (self._uses.time or self._uses.size) or not _is_more_precise(other, option):
            return False
        smaller = stored_bytes(option, layer, self._capabilities) < stored_bytes(other, layer, self._capabilities)
        return not (self._uses.size and smaller) and not (self._uses.time and self._may_be_faster(option, other, layer))

    def _may_be_faster(self, option: LayerPolicy, other: LayerPolicy, layer: Layer) -> bool:
        ours, theirs = self._cases(layer, option), self._cases(layer, other)
        unsure = not ours or not theirs or (_is_static(option) and not _is_static(other))
        return unsure or any(may_be_faster(one, base) for one in ours for base in theirs)

    def _cases(self, layer: Layer, option: LayerPolicy) -> list[tuple[Case, ...]]:
        """Figures of each encoding that an option may end in; none where one of them is not known."""
        if option.quantizer is None:
            known = [row for row in self._findings.about("layer", layer.kind) if row.cases]
            return [row.against for row in known[:1]]
        rows = self._rows(layer, option)
        return [row.cases for row in rows if row is not None] if all(row is not None and row.cases for row in rows) else []

    def _rows(self, layer: Layer, option: LayerPolicy) -> list[Finding | None]:
        """The findings for an option, what it most probably is stored as first; None for one that was not probed."""
        found = {row.encoding: row for row in self._findings.about("layer", layer.kind) if row.mode == option.activation}
        return [found.get(name) for name in self._encodings(layer, option)]

    def _encodings(self, layer: Layer, option: LayerPolicy) -> list[str]:
        assert option.quantizer is not None
        bits = min(container for container in self._capabilities.containers[layer.kind] if container >= option.bits)
        if self._components.quantizers[option.quantizer].blocks(layer):
            return [f"blocks-int{bits}"]
        dense = [f"int{bits}", *([f"codebook{bits}"] if bits == 4 and self._capabilities.codebooks else [])]
        return [f"sparse-int{bits}", *dense] if option.prunes and self._capabilities.packed_sparse else dense

    def _words(self, layer: Layer, option: LayerPolicy) -> str:
        row = self._rows(layer, option)[0] if option.quantizer is not None else None
        if row is None:
            return f"{layer.kind} {option.quantizer or 'float'} {option.bits} bits{' sparse' if option.prunes else ''}"
        return f"{row.label}: {self._findings.verdict(row)}"

    def _all_slower(self, option: RegionPolicy, types: Mapping[str, str]) -> bool:
        slower = all(self._is_slower(types[op]) for op in option.ops)
        if self._uses.time and slower:
            self._dropped[", ".join(sorted({types[op] for op in option.ops})) + " in integers: slower here"] += 1
        return self._uses.time and slower

    def _is_slower(self, op_type: str) -> bool:
        rows = [row for row in self._findings.about("op", op_type) if row.cases]
        return bool(rows) and all(is_slower(row.cases, row.against) for row in rows)


def _is_static(option: LayerPolicy) -> bool:
    """In integers from end to end: slower alone, a layer may still save changes of precision between integer neighbours."""
    return option.quantizer is not None and option.activation == "static"


def _is_more_precise(other: LayerPolicy, option: LayerPolicy) -> bool:
    """Whether it keeps more of the weights, or computes in float with as much of them, cut in the same way or not at all."""
    if option.quantizer is None and not option.prunes:
        return False
    if other == LayerPolicy():
        return True
    alike = other.quantizer == option.quantizer or other.bits > option.bits
    cut = other.pruner is None or (other.pruner, other.structure) == (option.pruner, option.structure)
    keeps = other.bits >= option.bits and other.sparsity <= option.sparsity
    computes = other.activation in (option.activation, "float")
    more = other.bits > option.bits or other.sparsity < option.sparsity or other.activation != option.activation
    return alike and cut and keeps and computes and more
