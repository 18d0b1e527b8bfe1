"""What the search may decide: for each group an ordered table of options; Optuna sees the index into it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol, get_args

import torch
from optuna.distributions import BaseDistribution, IntDistribution
from torch import Tensor

from autocompress.components import Capabilities, Components, Quantizer
from autocompress.errors import ConfigError, PolicyError
from autocompress.network.channels import ChannelGroup, share_below
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.regions import RegionPolicy, merged, region_options
from autocompress.policy import FLOAT_BITS, UNSTRUCTURED, Activation, ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.observers import ObserverPolicy, merged_observers, observer_options
from autocompress.tensors.ranges import Range
from autocompress.tensors.sparsity import CHANNEL, n_of_m, share_removed

CHANNELS = "channels/"
"""Prefix of the Optuna parameter of a channel group; a layer's parameter is the layer's name."""

OPS = "ops/"
"""Prefix of the parameter of a kind of region: operators without weights between layers."""

OBSERVERS = "observers/"
"""Prefix of the parameter of a tensor whose range several observers may give."""

SCOPES = ("layer", "global")


class Scores(Protocol):
    """What pruners think, where a space needs to know it: thresholds are options only where they remove something."""

    def score(self, pruner: str, layer: str) -> Tensor:
        """Importance of each weight of a layer: float32, shape of the weight."""

    def group_score(self, pruner: str, group: str) -> Tensor:
        """Importance of each channel of a group: float32, shape (size,), mean 1."""


@dataclass
class SpaceSettings:
    """What may be tried.

    Attributes:
        include, exclude: globs of layer names; a layer that is not included, or is excluded, stays float.
        allow_float: whether an included layer may stay float.
        activations: how layers whose weight has codes may compute, where the target can: `static`, `dynamic`, `float`; a layer
            that can do none of these computes as it can.
        sparsities: shares that a pruner may remove.
        thresholds: scores; a pruner may remove what is not above one. Scores of channels are in units of their group's mean.
        structures: where a pruner may cut: single weights (`unstructured`), n of each m neighbouring inputs stay (`n:m`, for
            example `2:4`), whole channels (`channel`).
        scope: what a share in `sparsities` is a share of: each `layer` (each group of channels), or all of them (`global`):
            then one score decides everywhere, and layers lose different shares.
        channel_multiple: the channels that stay are rounded to a multiple of this.
        ops: whether the precision of what sits between layers (activations, sums, squeeze-excite products) is searched, one
            decision for all regions of a kind; otherwise it is integer where all its inputs are quantized anyway.
    """

    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    allow_float: bool = True
    sparsities: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7])
    structures: list[str] = field(default_factory=lambda: [UNSTRUCTURED, CHANNEL])
    channel_multiple: int = 8
    thresholds: list[float] = field(default_factory=list)
    scope: str = "layer"
    activations: list[str] = field(default_factory=lambda: ["static"])
    ops: bool = True

    def __post_init__(self) -> None:
        if not self.activations or not set(self.activations) <= set(get_args(Activation)):
            raise ConfigError(f"space.activations={self.activations}: expected some of {', '.join(get_args(Activation))}")
        wrong = [share for share in self.sparsities if not 0 < share < 1]
        if wrong:
            raise ConfigError(f"space.sparsities={wrong}: expected shares between 0 and 1, for example 0.5")
        unknown = [name for name in self.structures if name not in (UNSTRUCTURED, CHANNEL) and n_of_m(name) is None]
        if unknown:
            known = f"'{UNSTRUCTURED}', '{CHANNEL}' or n:m such as '2:4'"
            raise ConfigError(f"space.structures={unknown}: expected {known} (YAML reads it as a time of day without quotes)")
        if not all(math.isfinite(score) for score in self.thresholds):
            raise ConfigError(f"space.thresholds={self.thresholds}: expected finite scores, for example 0.01")
        if self.scope not in SCOPES:
            raise ConfigError(f"space.scope='{self.scope}': expected one of {', '.join(SCOPES)}")
        if self.channel_multiple < 1:
            raise ConfigError(f"space.channel_multiple={self.channel_multiple}: expected at least 1")


Option = LayerPolicy | ChannelPolicy | RegionPolicy | ObserverPolicy


@dataclass(frozen=True)
class SearchSpace:
    """The decisions: parameter name to its options, from the most precise to the smallest.

    Attributes:
        whole: digest of the space that this one is a part of; empty: it is whole.
    """

    layers: Mapping[str, tuple[LayerPolicy, ...]]
    channels: Mapping[str, tuple[ChannelPolicy, ...]]
    ops: Mapping[str, tuple[RegionPolicy, ...]] = field(default_factory=dict)
    observers: Mapping[str, tuple[ObserverPolicy, ...]] = field(default_factory=dict)
    whole: str = ""

    @property
    def family(self) -> str:
        """Digest of the space before a goal left out what it has no use for: measurements are shared among such spaces."""
        return self.whole or self.digest

    @property
    def digest(self) -> str:
        """Short hash of all tables: indices mean the same exactly when it is equal."""
        tables = {name: [asdict(option) for option in options] for name, options in self._tables()}
        return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def sizes(self) -> dict[str, int]:
        """Parameter to its number of options; groups with a single option are left out."""
        return {name: len(options) for name, options in self._tables() if len(options) > 1}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's view; groups with a single option are left out."""
        return {name: IntDistribution(0, count - 1) for name, count in self.sizes.items()}

    def _tables(self) -> Iterator[tuple[str, Sequence[Option]]]:
        yield from self.layers.items()
        yield from ((CHANNELS + name, options) for name, options in self.channels.items())
        yield from ((OPS + name, options) for name, options in self.ops.items())
        yield from ((OBSERVERS + name, options) for name, options in self.observers.items())

    def policy(self, indices: Mapping[str, int]) -> Policy:
        """The policy that Optuna's parameters stand for."""
        layers = {name: options[indices.get(name, 0)] for name, options in self.layers.items()}
        channels = {name: options[indices.get(CHANNELS + name, 0)] for name, options in self.channels.items()}
        return Policy(
            layers={name: option for name, option in layers.items() if option != LayerPolicy()},
            channels={name: option for name, option in channels.items() if option != ChannelPolicy()},
            ops=merged(options[indices.get(OPS + name, 0)] for name, options in self.ops.items()),
            observers=merged_observers(options[indices.get(OBSERVERS + name, 0)] for name, options in self.observers.items()),
        )

    def alone(self, name: str, index: int) -> Policy:
        """The policy with one option of one parameter and FP32 for everything else.

        An observer changes nothing in FP32: its tensor is rounded to 8 bits.
        """
        if name.startswith(CHANNELS):
            group = name.removeprefix(CHANNELS)
            cut = self.channels[group][index]
            return Policy(channels={group: cut} if cut != ChannelPolicy() else {})
        if name.startswith(OPS):
            return Policy(ops=self.ops[name.removeprefix(OPS)][index].decisions)
        if name.startswith(OBSERVERS):
            return self.observers[name.removeprefix(OBSERVERS)][index].alone
        option = self.layers[name][index]
        return Policy({name: option} if option != LayerPolicy() else {})

    def speed_classes(self, name: str) -> list[int]:
        """For each option of a parameter the first one whose file takes the same time, however small its weights are."""
        options = dict(self._tables())[name]
        keys = [_speed(option) for option in options]
        return [keys.index(key) for key in keys]

    def indices(self, policy: Policy) -> dict[str, int]:
        """Optuna's parameters for a policy.

        Raises:
            PolicyError: the policy decides something that this space does not offer.
        """
        layers = {name: _index(name, options, policy.layers.get(name, LayerPolicy())) for name, options in self.layers.items()}
        channels = {
            CHANNELS + name: _index(name, options, policy.channels.get(name, ChannelPolicy()))
            for name, options in self.channels.items()
        }
        for name in [*policy.layers.keys() - self.layers.keys(), *policy.channels.keys() - self.channels.keys()]:
            raise PolicyError(f"seed policy decides '{name}', which is not searched; searched: {', '.join(self.layers)}")
        regions = {OPS + name: _region_index(name, options, policy) for name, options in self.ops.items()}
        for name in policy.ops.keys() - {op for options in self.ops.values() for option in options for op in option.ops}:
            raise PolicyError(f"seed policy decides the operator '{name}'; it is not searched")
        observers = {OBSERVERS + name: _observer_index(name, options, policy) for name, options in self.observers.items()}
        for name in policy.observers.keys() - {t for options in self.observers.values() for t in options[0].tensors}:
            raise PolicyError(f"seed policy decides the observer of '{name}'; it is not searched (search.observers)")
        found = layers | channels | regions | observers
        return {name: index for name, index in found.items() if name in self.distributions}

    def offers(self, policy: Policy) -> bool:
        """Whether some choice of options is this policy."""
        try:
            self.indices(policy)
        except PolicyError:
            return False
        return True


def _speed(option: Option) -> object:
    """What of an option decides the time; integer kernels read stored codes of any width after they are expanded at load."""
    if isinstance(option, ObserverPolicy):
        return None
    return (option.quantizer is None, option.activation) if isinstance(option, LayerPolicy) else option


def static_options(options: Sequence[LayerPolicy]) -> list[LayerPolicy]:
    """The options of a layer that compute in integers on a fixed range, the mildest first."""
    return [option for option in options if option.quantizer is not None and option.activation == "static"]


def _observer_index(name: str, options: Sequence[ObserverPolicy], policy: Policy) -> int:
    """One of the tensors that share a grid speaks for all: which of them has it depends on the policy."""
    wanted = {policy.observers[tensor] for tensor in options[0].tensors if tensor in policy.observers}
    for index, option in enumerate(options):
        if wanted == ({option.observer} if option.observer else set()):
            return index
    offers = ", ".join(option.observer or "the configured one" for option in options)
    raise PolicyError(f"seed policy asks {', '.join(wanted)} for the range of '{name}'; this space offers {offers}")


def _region_index(name: str, options: Sequence[RegionPolicy], policy: Policy) -> int:
    members = {op for option in options for op in option.ops}
    wanted = {op: precision for op, precision in policy.ops.items() if op in members}
    for index, option in enumerate(options):
        if option.decisions == wanted:
            return index
    offers = "; ".join(f"{option.precision}: {', '.join(option.ops) or 'none named'}" for option in options)
    raise PolicyError(f"seed policy asks {wanted} of the operators '{name}'; this space offers {offers}")


def _index(name: str, options: Sequence[LayerPolicy | ChannelPolicy], wanted: LayerPolicy | ChannelPolicy) -> int:
    for index, option in enumerate(options):
        if option.decision == wanted.decision:
            return index
    raise PolicyError(f"seed policy asks {wanted} for '{name}'; this space offers: {', '.join(map(str, options))}")


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
