"""From a policy to tensors: each (layer, decision) is compressed once and kept, so that a trial only stitches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from autocompress.calibration import Calibration, Range
from autocompress.channels import ChannelGroup, file_axis, keep_indices
from autocompress.components import Components, QuantizedTensor
from autocompress.errors import PolicyError
from autocompress.graph import BaseGraph, Layer
from autocompress.placement import place
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.stats import LayerStats

GAIN_LIMITS = (0.5, 2.0)
"""A channel whose spread changed more than this is broken, not rescaled."""


@dataclass(frozen=True)
class CompressedLayer:
    """What is stored for one layer.

    Attributes:
        weight: codes, or float32 values.
        bias: float32, shape (channels,); None when the layer has none and needs none.
        mask: bool, shape of the weight; None when no single weights were removed.
    """

    weight: QuantizedTensor | Tensor
    bias: Tensor | None
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """The float32 weight that the file computes with."""
        return self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight


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


class LayerDatabase:
    """Compresses layers on demand and remembers the results."""

    def __init__(
        self, graph: BaseGraph, calibration: Calibration, components: Components, groups: Mapping[str, ChannelGroup]
    ) -> None:
        self._graph, self._calibration, self._components, self._groups = graph, calibration, components, groups
        self._layers: dict[tuple[object, ...], CompressedLayer] = {}

    def compress(self, policy: Policy) -> CompressedModel:
        """All tensors of a policy.

        Raises:
            PolicyError: the policy names a layer, group, quantizer or pruner that does not exist here.
        """
        self._check(policy)
        kept = {name: self._keep(name, policy) for name, group in policy.channels.items() if group.sparsity > 0}
        cuts = file_cuts(self._graph, self._groups, kept)
        layers = {
            name: self._layer(layer, policy.layers.get(name, LayerPolicy()), cuts.get(name, {}))
            for name, layer in self._graph.layers.items()
            if name in cuts or policy.layers.get(name, LayerPolicy()) != LayerPolicy()
        }
        quantized = place(self._graph, policy, self._components.target.capabilities()).quantized
        ranges = {source: self._calibration.ranges[source] for source in quantized.values()}
        return CompressedModel(layers=layers, ranges=ranges, kept=kept)

    def _check(self, policy: Policy) -> None:
        decisions: list[LayerPolicy | ChannelPolicy] = [*policy.layers.values(), *policy.channels.values()]
        names: dict[str, tuple[Collection[str | None], Collection[str]]] = {
            "layer": (policy.layers, self._graph.layers),
            "channel group": (policy.channels, self._groups),
            "quantizer": ({layer.quantizer for layer in policy.layers.values()} - {None}, self._components.quantizers),
            "pruner": ({decision.pruner for decision in decisions if decision.sparsity > 0}, self._components.pruners),
        }
        for kind, (given, known) in names.items():
            unknown = sorted(str(name) for name in given if name not in known)
            if unknown:
                raise PolicyError(f"policy names the {kind} '{unknown[0]}'; expected one of: {', '.join(known) or 'none'}")

    def _keep(self, name: str, policy: Policy) -> Tensor:
        group = self._groups[name]
        decision = policy.channels[name]
        pruner = self._components.pruners[str(decision.pruner)]
        stats = {entry.module: self._stats(entry.module) for entry in group.entries}
        scores = {layer: pruner.score(layer_stats.weight, layer_stats) for layer, layer_stats in stats.items()}
        return keep_indices(group, self._graph.layers, scores, decision.sparsity)

    def _stats(self, layer: str) -> LayerStats:
        return self._calibration.stats(self._graph.layers[layer])

    def _layer(self, layer: Layer, policy: LayerPolicy, cuts: Mapping[int, Tensor]) -> CompressedLayer:
        key = (layer.name, policy, tuple((axis, tuple(kept.tolist())) for axis, kept in sorted(cuts.items())))
        if key not in self._layers:
            self._layers[key] = self._compressed(layer, policy, cuts)
        return self._layers[key]

    def _compressed(self, layer: Layer, policy: LayerPolicy, cuts: Mapping[int, Tensor]) -> CompressedLayer:
        stats = self._stats(layer.name)
        weight = slice_axes(stats.weight, cuts)
        mask = None
        if policy.pruner is not None and policy.sparsity > 0:
            pruner = self._components.pruners[policy.pruner]
            mask = largest(slice_axes(pruner.score(stats.weight, stats), cuts), policy.sparsity)
            weight = pruner.update(weight, mask, stats)
        stored: QuantizedTensor | Tensor = weight
        if policy.quantizer is not None:
            stored = self._components.quantizers[policy.quantizer].quantize(weight, policy.bits, stats, mask)
        return match_moments(CompressedLayer(stored, self._bias(layer, cuts), mask), stats, cuts)

    def _bias(self, layer: Layer, cuts: Mapping[int, Tensor]) -> Tensor | None:
        if layer.bias is None:
            return None
        bias = torch.from_numpy(self._graph.initializers[layer.bias].copy())
        return bias[cuts[layer.channel_axis]] if layer.channel_axis in cuts else bias


def slice_axes(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    """Keep only the given indices along each axis."""
    for axis, kept in cuts.items():
        tensor = tensor.index_select(axis, kept)
    return tensor


def largest(score: Tensor, sparsity: float) -> Tensor:
    """Mask of the entries that stay when the share `sparsity` with the lowest score is removed; exact also with ties."""
    mask = torch.ones(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(stable=True)[: round(sparsity * score.numel())]] = False
    return mask.reshape(score.shape)


def file_cuts(graph: BaseGraph, groups: Mapping[str, ChannelGroup], kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Layer to axis of the file's weight to the indices that stay."""
    cuts: dict[str, dict[int, Tensor]] = {}
    for name, channels in kept.items():
        for entry in groups[name].entries:
            axis = file_axis(entry, graph.layers[entry.module])
            cuts.setdefault(entry.module, {})[axis] = entry.kept(channels)
    return cuts


def match_moments(compressed: CompressedLayer, stats: LayerStats, cuts: Mapping[int, Tensor]) -> CompressedLayer:
    """Move scale and bias of each output channel so that mean and spread of its output are those of FP32.

    With input mean m and covariance C, an output channel w has mean w m and variance w C w'. The gain
    sqrt(w C w' / v C v') goes into the scale of the compressed channel v, the difference of the means into the bias: codes
    and bytes stay as they are. (Moment matching as in OBC's `statcorr`, Frantar and Alistarh 2022, here in closed form.)
    """
    layer, dense = stats.layer, compressed.dense()
    kept = cuts.get(layer.channel_axis, torch.arange(layer.channels))
    group = kept // (layer.channels // layer.groups)
    mean = stats.input_mean  # (groups, d)
    covariance = stats.input_second_moment - mean[:, :, None] * mean[:, None, :]  # (groups, d, d)
    target, now = _rows(stats.weight, layer)[kept], _rows(_widened(dense, layer, cuts), layer)  # (channels, d) each
    spread = _quadratic(now, covariance, group)
    gain = torch.where(spread > 1e-12, _quadratic(target, covariance, group) / spread.clamp_min(1e-12), 1.0)
    gain = gain.sqrt().clamp(*GAIN_LIMITS)  # (channels,)
    shift = ((target - gain[:, None] * now) * mean[group]).sum(1)
    bias = compressed.bias if compressed.bias is not None else torch.zeros_like(shift)
    addable = compressed.bias is not None or layer.kind != "linear"
    return replace(
        compressed, weight=_scaled(compressed.weight, gain, layer.channel_axis), bias=bias + shift if addable else None
    )


def _rows(weight: Tensor, layer: Layer) -> Tensor:
    """One row for each output channel: (channels, d)."""
    return weight.movedim(layer.channel_axis, 0).flatten(1)


def _widened(weight: Tensor, layer: Layer, cuts: Mapping[int, Tensor]) -> Tensor:
    """The weight with zeros where input channels were removed."""
    axis = 1 - layer.channel_axis
    if axis not in cuts:
        return weight
    shape = list(weight.shape)
    shape[axis] = layer.shape[axis]
    return torch.zeros(shape).index_copy_(axis, cuts[axis], weight)


def _quadratic(rows: Tensor, covariance: Tensor, group: Tensor) -> Tensor:
    """The value w C w' for each row w (channels, d) with the covariance of its group (groups, d, d): (channels,)."""
    if len(covariance) == 1:
        return ((rows @ covariance[0]) * rows).sum(1)
    return torch.einsum("cd,cde,ce->c", rows, covariance[group], rows)


def _scaled(weight: QuantizedTensor | Tensor, gain: Tensor, axis: int) -> QuantizedTensor | Tensor:
    """Multiply each output channel, in the scale where there is one."""
    if isinstance(weight, QuantizedTensor):
        return replace(weight, scale=weight.scale * gain, zero_point=weight.zero_point.expand_as(gain), axis=axis)
    return weight * gain.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])
