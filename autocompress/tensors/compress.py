"""From a policy to tensors: each (layer, decision) is compressed once and kept, so that a trial only stitches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from autocompress.components import Capabilities, Components, CompressedLayer, QuantizedTensor, Recovery
from autocompress.errors import PolicyError
from autocompress.guarding.plugin_call import calling, described
from autocompress.network.channels import ChannelGroup, channel_scores, file_axis, keep_indices
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.placement import centred, check_decisions, place
from autocompress.policy import INTEGER_BITS, ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.guarded_weights import check_repaired
from autocompress.tensors.ranges import Range
from autocompress.tensors.sparsity import weight_mask
from autocompress.tensors.stats import LayerStats, slice_axes


@dataclass(frozen=True)
class CompressedModel:
    """Every tensor of a candidate: with the base graph and the policy it determines the file.

    Attributes:
        layers: by name; a layer that is not named is as in the base graph.
        ranges: grid of each quantized activation tensor.
        kept: channel indices left in each group that was cut.
    """

    layers: Mapping[str, CompressedLayer]
    ranges: Mapping[str, Range]
    kept: Mapping[str, Tensor] = field(default_factory=dict)


def placed_ranges(
    graph: BaseGraph, policy: Policy, capabilities: Capabilities, found: Callable[[str], Range]
) -> dict[str, Range]:
    """The grid of each tensor whose scale a file has.

    Args:
        found: the grid that was found for a tensor by itself.
    """
    placement = place(graph, policy, capabilities)
    ranges = {source: Range.covering([found(name) for name in sorted(held)]) for source, held in placement.ranges.items()}
    return ranges | {source: ranges[source].centred() for source in centred(graph, placement, capabilities)}


class LayerDatabase:
    """Compresses layers on demand and remembers the results.

    Args:
        masks: layer to the weights that stay, instead of those that a pruner would choose: fine-tuning adapted to them.
    """

    def __init__(
        self,
        graph: BaseGraph,
        calibration: Calibration,
        components: Components,
        groups: Mapping[str, ChannelGroup],
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._graph, self._calibration, self._components, self._groups = graph, calibration, components, groups
        self._masks = masks or {}
        self._layers: dict[tuple[object, ...], CompressedLayer] = {}
        self._scores: dict[tuple[str, str, int | None], Tensor] = {}

    def compress(self, policy: Policy) -> CompressedModel:
        """All tensors of a policy.

        Raises:
            PolicyError: the policy names a layer, group, quantizer or pruner that does not exist here.
        """
        self._check(policy)
        kept = self._kept(policy)
        cuts = file_cuts(self._graph, self._groups, kept)
        cutters = _cutters(policy, self._groups)
        layers = {
            name: self._layer(layer, policy.layers.get(name, LayerPolicy()), cuts.get(name, {}), cutters.get(name))
            for name, layer in self._graph.layers.items()
            if name in cuts or policy.layers.get(name, LayerPolicy()) != LayerPolicy()
        }
        ranges = placed_ranges(self._graph, policy, self._components.target.capabilities(), partial(self._grid, policy=policy))
        return CompressedModel(layers=layers, ranges=ranges, kept=kept)

    def _grid(self, tensor: str, policy: Policy) -> Range:
        bits, observer = policy.tensors.get(tensor, INTEGER_BITS), policy.observers.get(tensor)
        return self._calibration.grids(bits, observer)[tensor]

    def _check(self, policy: Policy) -> None:
        decisions: list[LayerPolicy | ChannelPolicy] = [*policy.layers.values(), *policy.channels.values()]
        names: dict[str, tuple[Collection[str | None], Collection[str]]] = {
            "layer": (policy.layers, self._graph.layers),
            "channel group": (policy.channels, self._groups),
            "quantizer": ({layer.quantizer for layer in policy.layers.values()} - {None}, self._components.quantizers),
            "pruner": ({decision.pruner for decision in decisions if decision.prunes}, self._components.pruners),
            "observer": (set(policy.observers.values()), self._components.observers),
        }
        for kind, (given, known) in names.items():
            unknown = sorted(str(name) for name in given if name not in known)
            if unknown:
                raise PolicyError(f"policy names the {kind} '{unknown[0]}'; expected one of: {', '.join(known) or 'none'}")
        check_decisions(self._graph, policy, self._components.target.capabilities())
        for name, layer in policy.layers.items():
            if layer.quantizer is not None:
                self._check_blocks(self._graph.layers[name], layer)

    def _check_blocks(self, layer: Layer, decision: LayerPolicy) -> None:
        if not self._components.quantizers[str(decision.quantizer)].blocks(layer):
            return
        gives = f"layer {layer.name}: quantizer '{decision.quantizer}' gives blocks of inputs scales of their own, and"
        able = self._components.target.capabilities().group_sizes
        if decision.activation != "float":
            raise PolicyError(f"{gives} activation is '{decision.activation}'; expected 'float': no integer kernel takes them")
        if layer.kind not in able:
            target, kinds = self._components.target.name, ", ".join(sorted(able)) or "no layer"
            raise PolicyError(f"{gives} target '{target}' takes them for {kinds} only, not for {layer.kind}")

    def score(self, pruner: str, layer: str) -> Tensor:
        """What a pruner thinks of each weight of a whole layer: float32, shape of the weight."""
        if (pruner, layer, None) not in self._scores:
            stats = self._stats(layer)
            self._scores[pruner, layer, None] = self._components.pruners[pruner].score(stats.weight, stats)
        return self._scores[pruner, layer, None]

    def group_score(self, pruner: str, group: str) -> Tensor:
        """What a pruner thinks of each channel of a group: float32, shape (size,), mean 1."""

        def score(layer: str, axis: int) -> Tensor:
            if (pruner, layer, axis) not in self._scores:
                stats = self._stats(layer)
                self._scores[pruner, layer, axis] = self._components.pruners[pruner].channel_score(stats.weight, stats, axis)
            return self._scores[pruner, layer, axis]

        return channel_scores(self._groups[group], self._graph.layers, score)

    def remaining(self, policy: Policy) -> dict[str, Tensor]:
        """Which weights of each layer that is pruned are in the file: bool, shape of the whole layer's weight."""
        self._check(policy)
        cuts = file_cuts(self._graph, self._groups, self._kept(policy))
        pruned = [name for name, layer in policy.layers.items() if layer.prunes]
        return {name: self._remaining(name, policy, cuts.get(name, {})) for name in dict.fromkeys([*cuts, *pruned])}

    def _remaining(self, name: str, policy: Policy, cuts: Mapping[int, Tensor]) -> Tensor:
        stats, decision = self._stats(name).cut(cuts), policy.layers.get(name, LayerPolicy())
        mask = self._mask(stats.layer, decision, cuts) if decision.prunes else torch.ones(stats.layer.shape, dtype=torch.bool)
        return _widened(mask, self._graph.layers[name], cuts)

    def _kept(self, policy: Policy) -> dict[str, Tensor]:
        return {name: self._keep(name, group) for name, group in policy.channels.items() if group.prunes}

    def _keep(self, name: str, decision: ChannelPolicy) -> Tensor:
        return keep_indices(self._groups[name], self.group_score(str(decision.pruner), name), decision)

    def _stats(self, layer: str) -> LayerStats:
        return self._calibration.stats(self._graph.layers[layer])

    def _layer(self, layer: Layer, policy: LayerPolicy, cuts: Mapping[int, Tensor], cutter: str | None) -> CompressedLayer:
        tensors = replace(policy, activation=LayerPolicy().activation)  # how it computes changes none of them
        key = (layer.name, tensors, cutter, tuple((axis, tuple(kept.tolist())) for axis, kept in sorted(cuts.items())))
        if key not in self._layers:
            self._layers[key] = self._compressed(layer, policy, cuts, cutter)
        return self._layers[key]

    def _compressed(self, layer: Layer, policy: LayerPolicy, cuts: Mapping[int, Tensor], cutter: str | None) -> CompressedLayer:
        whole = self._stats(layer.name)
        stats = whole.cut(cuts)
        weight, mask = self._without_inputs(whole, cuts, cutter), None
        if policy.prunes:
            pruner = self._components.pruners[str(policy.pruner)]
            mask = self._mask(stats.layer, policy, cuts)
            weight = pruner.update(weight, mask, stats)
        stored: QuantizedTensor | Tensor = weight
        if policy.quantizer is not None:
            stored = self._components.quantizers[policy.quantizer].quantize(weight, policy.bits, stats, mask)
        compressed = CompressedLayer(stored, self._bias(layer, cuts), mask)
        for recovery in self._components.recoveries:
            compressed = _repaired(recovery, compressed, whole, cuts, stats)
        return compressed

    def _without_inputs(self, whole: LayerStats, cuts: Mapping[int, Tensor], cutter: str | None) -> Tensor:
        """The weight after its channels were removed; those that stay may take over what removed inputs gave."""
        axis = 1 - whole.layer.channel_axis
        if cutter is None or axis not in cuts:
            return slice_axes(whole.weight, cuts)
        mask = torch.zeros(whole.layer.shape, dtype=torch.bool).index_fill_(axis, cuts[axis], True)
        return slice_axes(self._components.pruners[cutter].update(whole.weight, mask, whole), cuts)

    def _mask(self, layer: Layer, policy: LayerPolicy, cuts: Mapping[int, Tensor]) -> Tensor:
        if layer.name in self._masks:
            return self._masks[layer.name]
        return weight_mask(slice_axes(self.score(str(policy.pruner), layer.name), cuts), layer, policy)

    def _bias(self, layer: Layer, cuts: Mapping[int, Tensor]) -> Tensor | None:
        if layer.bias is None:
            return None
        bias = torch.from_numpy(self._graph.initializers[layer.bias].copy())
        return bias[cuts[layer.channel_axis]] if layer.channel_axis in cuts else bias


def _repaired(
    recovery: Recovery, compressed: CompressedLayer, whole: LayerStats, cuts: Mapping[int, Tensor], stats: LayerStats
) -> CompressedLayer:
    """What a recovery makes of a layer.

    Args:
        stats: of what is left of the layer.
    """
    with calling(recovery, f"repair layer {whole.layer.name}"):
        found = recovery.repair(copy.deepcopy(compressed), whole.copied(), dict(cuts))
    return check_repaired(described(recovery), found, compressed, stats)


def _cutters(policy: Policy, groups: Mapping[str, ChannelGroup]) -> dict[str, str]:
    """Layer that reads removed channels to the pruner that removed them."""
    cut = {name: str(decision.pruner) for name, decision in policy.channels.items() if decision.prunes}
    return {entry.module: pruner for name, pruner in cut.items() for entry in groups[name].entries if not entry.outputs}


def _widened(mask: Tensor, layer: Layer, cuts: Mapping[int, Tensor]) -> Tensor:
    """A mask of what is left of a layer, with False where it was cut: the whole layer's shape."""
    for axis, kept in cuts.items():
        shape = [*mask.shape[:axis], layer.shape[axis], *mask.shape[axis + 1 :]]
        mask = torch.zeros(shape, dtype=torch.bool).index_copy_(axis, kept, mask)
    return mask


def file_cuts(graph: BaseGraph, groups: Mapping[str, ChannelGroup], kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Layer to axis of the file's weight to the indices that stay."""
    cuts: dict[str, dict[int, Tensor]] = {}
    for name, channels in kept.items():
        for entry in groups[name].entries:
            axis = file_axis(entry, graph.layers[entry.module])
            cuts.setdefault(entry.module, {})[axis] = entry.kept(channels)
    return cuts
