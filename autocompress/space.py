"""What the search may decide: for each group an ordered table of options; Optuna sees the index into it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

from optuna.distributions import BaseDistribution, IntDistribution

from autocompress.channels import ChannelGroup
from autocompress.components import Capabilities, Components
from autocompress.errors import ConfigError, PolicyError
from autocompress.graph import BaseGraph, Layer
from autocompress.policy import FLOAT_BITS, ChannelPolicy, LayerPolicy, Policy

CHANNELS = "channels/"
"""Prefix of the Optuna parameter of a channel group; a layer's parameter is the layer's name."""

STRUCTURES = ("unstructured", "channel")


@dataclass
class SpaceSettings:
    """What may be tried.

    Attributes:
        include, exclude: globs of layer names; a layer that is not included, or is excluded, stays float.
        allow_float: whether an included layer may stay float.
        sparsities: shares that a pruner may remove.
        structures: where a pruner may cut: single weights (`unstructured`), whole channels (`channel`).
        channel_multiple: the channels that stay are rounded to a multiple of this.
    """

    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    allow_float: bool = True
    sparsities: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7])
    structures: list[str] = field(default_factory=lambda: list(STRUCTURES))
    channel_multiple: int = 8

    def __post_init__(self) -> None:
        wrong = [share for share in self.sparsities if not 0 < share < 1]
        if wrong:
            raise ConfigError(f"space.sparsities={wrong}: expected shares between 0 and 1, for example 0.5")
        unknown = sorted(set(self.structures) - set(STRUCTURES))
        if unknown:
            raise ConfigError(f"space.structures={unknown}: expected some of {list(STRUCTURES)}")
        if self.channel_multiple < 1:
            raise ConfigError(f"space.channel_multiple={self.channel_multiple}: expected at least 1")


Option = LayerPolicy | ChannelPolicy


@dataclass(frozen=True)
class SearchSpace:
    """The decisions: parameter name to its options, from the most precise to the smallest."""

    layers: Mapping[str, tuple[LayerPolicy, ...]]
    channels: Mapping[str, tuple[ChannelPolicy, ...]]

    @property
    def digest(self) -> str:
        """Short hash of all tables: indices mean the same exactly when it is equal."""
        tables = {name: [asdict(option) for option in options] for name, options in self._tables()}
        return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's view; groups with a single option are left out."""
        return {name: IntDistribution(0, len(options) - 1) for name, options in self._tables() if len(options) > 1}

    def _tables(self) -> Iterator[tuple[str, Sequence[Option]]]:
        yield from self.layers.items()
        yield from ((CHANNELS + name, options) for name, options in self.channels.items())

    def policy(self, indices: Mapping[str, int]) -> Policy:
        """The policy that Optuna's parameters stand for."""
        layers = {name: options[indices.get(name, 0)] for name, options in self.layers.items()}
        channels = {name: options[indices.get(CHANNELS + name, 0)] for name, options in self.channels.items()}
        return Policy(
            layers={name: option for name, option in layers.items() if option != LayerPolicy()},
            channels={name: option for name, option in channels.items() if option != ChannelPolicy()},
        )

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
        for name in policy.ops:
            raise PolicyError(f"seed policy decides the operator '{name}'; operators are not searched")
        return {name: index for name, index in (layers | channels).items() if name in self.distributions}


def _index(name: str, options: Sequence[Option], wanted: Option) -> int:
    for index, option in enumerate(options):
        if option == wanted:
            return index
    raise PolicyError(f"seed policy asks {wanted} for '{name}'; this space offers: {', '.join(map(str, options))}")


def build_space(
    graph: BaseGraph, components: Components, groups: Mapping[str, ChannelGroup], settings: SpaceSettings
) -> SearchSpace:
    """All options that the target can use and that are smaller than a more precise one.

    Raises:
        ConfigError: nothing is left to decide.
    """
    capabilities = components.target.capabilities()
    included = {name: layer for name, layer in graph.layers.items() if _is_included(name, settings)}
    layers = {name: _layer_options(layer, components, capabilities, settings) for name, layer in included.items()}
    cuttable = {name: group for name, group in groups.items() if name in included and "channel" in settings.structures}
    channels = {name: _channel_options(group, components, settings) for name, group in cuttable.items()}
    if all(len(options) < 2 for options in [*layers.values(), *channels.values()]):
        raise ConfigError(
            f"space: nothing to decide for {len(graph.layers)} layers (include={settings.include}, exclude={settings.exclude}, "
            f"quantizers={list(components.quantizers)}, pruners={list(components.pruners)}); "
            "expected at least one layer with two options"
        )
    return SearchSpace(layers, channels)


def _is_included(name: str, settings: SpaceSettings) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return matches(settings.include) and not matches(settings.exclude)


def _layer_options(
    layer: Layer, components: Components, capabilities: Capabilities, settings: SpaceSettings
) -> tuple[LayerPolicy, ...]:
    containers = capabilities.containers.get(layer.kind, ())
    dense = [LayerPolicy()]
    for name, quantizer in components.quantizers.items():
        widths = [bits for bits in quantizer.bit_widths(layer) if any(bits <= container for container in containers)]
        dense += [LayerPolicy(name, bits) for bits in widths]
    cuts = _cuts(components, settings, "unstructured")
    options = [*dense, *(LayerPolicy(o.quantizer, o.bits, pruner, share) for o in dense for pruner, share in cuts)]
    useful = [option for option in options if not _is_dominated(option, options, layer, capabilities)]
    allowed = [option for option in useful if settings.allow_float or option.quantizer is not None]
    return tuple(sorted(allowed or [LayerPolicy()], key=lambda option: -stored_bytes(option, layer, capabilities)))


def _cuts(components: Components, settings: SpaceSettings, structure: str) -> list[tuple[str, float]]:
    shares = settings.sparsities if structure in settings.structures else []
    return [(pruner, share) for share in sorted(shares) for pruner in components.pruners]


def _channel_options(group: ChannelGroup, components: Components, settings: SpaceSettings) -> tuple[ChannelPolicy, ...]:
    """Shares that leave different numbers of channels."""
    counts = {group.size}
    options = [ChannelPolicy()]
    for share in sorted(settings.sparsities):
        if group.kept_count(share) not in counts:
            counts.add(group.kept_count(share))
            options += [ChannelPolicy(pruner, share) for pruner in components.pruners]
    return tuple(options)


def _is_dominated(option: LayerPolicy, options: Sequence[LayerPolicy], layer: Layer, capabilities: Capabilities) -> bool:
    """Whether another option keeps more (bits or weights) in no more bytes."""
    size = stored_bytes(option, layer, capabilities)
    return any(
        stored_bytes(other, layer, capabilities) <= size
        and (other.bits >= option.bits and other.sparsity <= option.sparsity)
        and (other.bits > option.bits or other.sparsity < option.sparsity)
        and (other.pruner in (option.pruner, None))
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
