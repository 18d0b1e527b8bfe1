"""What the search may decide: for each group an ordered table of options; Optuna sees the index into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from optuna.distributions import BaseDistribution, IntDistribution

from autocompress.errors import PolicyError
from autocompress.network.regions import RegionPolicy, merged
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.observers import ObserverPolicy, merged_observers

CHANNELS = "channels/"
"""Prefix of the Optuna parameter of a channel group; a layer's parameter is the layer's name."""

OPS = "ops/"
"""Prefix of the parameter of a kind of region: operators without weights between layers."""

OBSERVERS = "observers/"
"""Prefix of the parameter of a tensor whose range several observers may give."""


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
