"""The options of each decision: what the target can use and what is smaller than a more precise one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol, get_args

import torch
from torch import Tensor

from autocompress.choices.space import SearchSpace, static_options
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Capabilities, Components, Quantizer
from autocompress.errors import ConfigError
from autocompress.network.channels import ChannelGroup, share_below
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.regions import region_options
from autocompress.policy import FLOAT_BITS, UNSTRUCTURED, Activation, ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.observers import observer_options
from autocompress.tensors.ranges import Range
from autocompress.tensors.sparsity import CHANNEL, n_of_m, share_removed


class Scores(Protocol):
    """What pruners think, where a space needs to know it: thresholds are options only where they remove something."""

    def score(self, pruner: str, layer: str) -> Tensor:
        """Importance of each weight of a layer: float32, shape of the weight."""

    def group_score(self, pruner: str, group: str) -> Tensor:
        """Importance of each channel of a group: float32, shape (size,), mean 1."""


def build_space(
    graph: BaseGraph,
    components: Components,
    groups: Mapping[str, ChannelGroup],
    settings: SpaceSettings,
    scores: Scores,
    ranges: Mapping[str, Mapping[str, Range]] | None = None,
) -> SearchSpace:
    """All options that the target can use and that are smaller than a more precise one.

    Args:
        ranges: observers that may be chosen to the grids that they find, the configured one first; None: it is not searched.

    Raises:
        ConfigError: nothing is left to decide.
    """
    included = {name: layer for name, layer in graph.layers.items() if _is_included(name, settings)}
    cuttable = {name: group for name, group in groups.items() if name in included and CHANNEL in settings.structures}
    weights = _Limits(scores.score, components.pruners, included, settings)
    whole = _Limits(scores.group_score, components.pruners, cuttable, settings)
    layers = {name: _layer_options(layer, components, settings, weights) for name, layer in included.items()}
    channels = {name: _channel_options(group, components, settings, whole) for name, group in cuttable.items()}
    if all(len(options) < 2 for options in [*layers.values(), *channels.values()]):
        raise ConfigError(
            f"space: nothing to decide for {len(graph.layers)} layers (include={settings.include}, exclude={settings.exclude}, "
            f"quantizers={list(components.quantizers)}, pruners={list(components.pruners)}); "
            "expected at least one layer with two options"
        )
    integer = Policy({name: static_options(options)[0] for name, options in layers.items() if static_options(options)})
    return SearchSpace(
        layers=layers,
        channels=channels,
        ops=region_options(graph, components.target.capabilities(), integer) if integer.layers and settings.ops else {},
        observers=observer_options(graph, components.target.capabilities(), integer, ranges) if ranges else {},
    )


def _is_included(name: str, settings: SpaceSettings) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return matches(settings.include) and not matches(settings.exclude)


class _Limits:
    """Score thresholds of the space: those in the settings, and for a global scope those that remove a share of everything.

    Args:
        score: of a pruner and the name of a layer or group.
        names: the layers or groups that a share is a share of.
    """

    def __init__(
        self, score: Callable[[str, str], Tensor], pruners: Iterable[str], names: Collection[str], settings: SpaceSettings
    ) -> None:
        self._score = score
        shares = sorted(settings.sparsities) if settings.scope == "global" and names else []
        self._thresholds = {pruner: [*settings.thresholds, *self._common(pruner, names, shares)] for pruner in pruners}

    def _common(self, pruner: str, names: Collection[str], shares: Sequence[float]) -> list[float]:
        """The scores of which shares of all scores together are not above."""
        if not shares:
            return []
        ranked = torch.cat([self._score(pruner, name).flatten() for name in names]).sort().values
        counts = [round(share * len(ranked)) for share in shares]
        return [float(ranked[count - 1]) for count in counts if count]

    def removed(self, pruner: str, name: str) -> dict[float, float]:
        """Thresholds that remove something but not everything from a layer or group, each share once: share to threshold."""
        found: dict[float, float] = {}
        for threshold in sorted(self._thresholds[pruner]):
            found.setdefault(share_below(self._score(pruner, name), threshold), threshold)
        return {share: threshold for share, threshold in found.items() if 0 < share < 1}


def _layer_options(layer: Layer, components: Components, settings: SpaceSettings, limits: _Limits) -> tuple[LayerPolicy, ...]:
    capabilities = components.target.capabilities()
    containers = capabilities.containers.get(layer.kind, ())
    dense = [LayerPolicy()]
    for name, quantizer in components.quantizers.items():
        widths = [bits for bits in quantizer.bit_widths(layer) if any(bits <= container for container in containers)]
        dense += [
            LayerPolicy(name, bits, activation=mode)
            for bits in widths
            for mode in _modes(layer, quantizer, capabilities, settings)
        ]
    cuts = [cut for pruner in components.pruners for cut in _cuts(layer, pruner, settings, limits)]
    options = [*dense, *(_cut(option, cut) for option in dense for cut in cuts)]
    useful = [option for option in options if not _is_dominated(option, options, layer, capabilities)]
    allowed = [option for option in useful if settings.allow_float or option.quantizer is not None]
    return tuple(sorted(allowed or [LayerPolicy()], key=lambda option: -stored_bytes(option, layer, capabilities)))


def _cut(dense: LayerPolicy, cut: LayerPolicy) -> LayerPolicy:
    return replace(cut, quantizer=dense.quantizer, bits=dense.bits, activation=dense.activation)


def _modes(layer: Layer, quantizer: Quantizer, capabilities: Capabilities, settings: SpaceSettings) -> Sequence[Activation]:
    if quantizer.blocks(layer):
        return ["float"] if layer.kind in capabilities.group_sizes else []
    possible = capabilities.modes(layer.kind)
    return [mode for mode in get_args(Activation) if mode in possible and mode in settings.activations] or possible


def _cuts(layer: Layer, pruner: str, settings: SpaceSettings, limits: _Limits) -> list[LayerPolicy]:
    """The ways in which single weights of a layer may be removed."""
    shares = {structure: share_removed(layer, structure) for structure in settings.structures if n_of_m(structure)}
    cuts = [LayerPolicy(pruner=pruner, sparsity=share, structure=name) for name, share in shares.items() if share]
    if UNSTRUCTURED not in settings.structures:
        return cuts
    if settings.scope == "layer":
        cuts += [LayerPolicy(pruner=pruner, sparsity=share) for share in sorted(settings.sparsities)]
    removed = limits.removed(pruner, layer.name)
    return [*cuts, *(LayerPolicy(pruner=pruner, sparsity=share, threshold=score) for share, score in removed.items())]


def _channel_options(
    group: ChannelGroup, components: Components, settings: SpaceSettings, limits: _Limits
) -> tuple[ChannelPolicy, ...]:
    """Ways that leave different numbers of channels."""
    shares = settings.sparsities if settings.scope == "layer" else []
    cuts = [ChannelPolicy(pruner, share) for pruner in components.pruners for share in shares]
    for pruner in components.pruners:
        cuts += [ChannelPolicy(pruner, share, score) for share, score in limits.removed(pruner, group.name).items()]
    found: dict[tuple[str | None, int], ChannelPolicy] = {}
    for cut in sorted(cuts, key=lambda cut: cut.sparsity):
        found.setdefault((cut.pruner, group.kept_count(cut.sparsity)), cut)
    useful = [(count, cut) for (_, count), cut in found.items() if count < group.size]
    return (ChannelPolicy(), *(cut for _, cut in sorted(useful, key=lambda pair: -pair[0])))


def _is_dominated(option: LayerPolicy, options: Sequence[LayerPolicy], layer: Layer, capabilities: Capabilities) -> bool:
    """Whether another option computed alike keeps more (bits, weights) in no more bytes, cut in the same way or not at all."""
    size = stored_bytes(option, layer, capabilities)
    return any(
        stored_bytes(other, layer, capabilities) <= size
        and (other.bits >= option.bits and other.sparsity <= option.sparsity)
        and (other.bits > option.bits or other.sparsity < option.sparsity)
        and (other.pruner is None or (other.pruner, other.structure) == (option.pruner, option.structure))
        and other.activation == option.activation
        for other in options
    )


def stored_bytes(option: LayerPolicy, layer: Layer, capabilities: Capabilities) -> int:
    """Bytes of the weight as the target stores it, without scales."""
    if option.quantizer is None:
        return layer.parameters * FLOAT_BITS // 8
    bits = min(container for container in capabilities.containers[layer.kind] if container >= option.bits)
    dense = math.ceil(layer.parameters * bits / 8)
    packed = math.ceil(layer.parameters * (bits * (1 - option.sparsity) + 1) / 8)
    return min(dense, packed) if capabilities.packed_sparse else dense
