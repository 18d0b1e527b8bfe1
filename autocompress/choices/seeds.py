"""Policies worth trying before a sampler has learned anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar, get_args

from autocompress.choices.space import SearchSpace
from autocompress.network.graph import Layer
from autocompress.network.regions import merged
from autocompress.policy import FLOAT_BITS, INTEGER_BITS, Activation, ChannelPolicy, LayerPolicy, Policy, Precision
from autocompress.tensors.narrow_weights import NARROW_BITS
from autocompress.tensors.observers import merged_observers
from autocompress.tensors.sparsity import CHANNEL, n_of_m

MIXES = (0.25, 0.5, 0.75, 0.9)
"""Shares of all weights that a mixed seed gives the fewer bits to, largest layers first."""

Choice = Mapping[str, LayerPolicy]
Shares = tuple[str, Mapping[str, float]]
"""A pruner, and the share of the channels that each group loses."""

_Option = TypeVar("_Option", LayerPolicy, ChannelPolicy)


def seed_policies(space: SearchSpace, layers: Mapping[str, Layer], shares: Sequence[Shares] = ()) -> list[Policy]:
    """Uniform policies, mixes of neighbouring precisions, then each way of pruning alone on the most precise codes.

    What sits between layers is tried in integers and in float, also with squeeze-excite blocks in float. Each observer is tried
    wherever it may give a range. The first and the last layer are the ones that most often have to stay float. In a mix the
    large layers go to fewer bits first: they give the most bytes, and small ones tend to be sensitive.

    Args:
        shares: ways of removing channels unevenly, each a pruner and the share of each group.
    """
    ladders = _ladders(space)
    uniform = [choice for ladder in ladders for choice in ladder]
    edges = [{**uniform[0], **edge} for edge in _float_edges(space)] if uniform else []
    mixes = [_mix(*pair, layers, share) for ladder in ladders for pair in pairwise(ladder) for share in MIXES]
    base = uniform[0] if uniform else {}
    policies = [_policy(choice) for choice in uniform]
    policies += [_policy(choice, ops=ops) for choice, ops in _between(space, base, layers)]
    policies += [replace(_policy(base), observers=observers) for observers in _observers(space)] if base else []
    policies += [_policy(choice) for choice in [*edges, *mixes, *_pruned(space, base)]]
    policies += [_policy(base, cut) for cut in [*_uneven_cuts(space, shares), *_channel_cuts(space)]]
    return _distinct(policies)


def uniform_policies(space: SearchSpace) -> list[Policy]:
    """One for each bit-width and way of computing, the most precise first."""
    return _distinct([_policy(choice) for ladder in _ladders(space) for choice in ladder])


def _distinct(policies: Sequence[Policy]) -> list[Policy]:
    """Each once, and not FP32."""
    return list({policy.digest: policy for policy in policies if policy != Policy()}.values())


def _ladders(space: SearchSpace) -> list[list[Choice]]:
    """For each way of computing the uniform choices, the most precise first."""
    return [[_uniform(space, bits, mode) for bits in _levels(space)] for mode in _modes(space)]


def _policy(
    layers: Choice, channels: Mapping[str, ChannelPolicy] | None = None, ops: Mapping[str, Precision] | None = None
) -> Policy:
    cuts = {name: option for name, option in (channels or {}).items() if option != ChannelPolicy()}
    return Policy({name: option for name, option in layers.items() if option != LayerPolicy()}, cuts, ops or {})


def _between(space: SearchSpace, base: Choice, layers: Mapping[str, Layer]) -> list[tuple[Choice, dict[str, Precision]]]:
    """`base` with everything between layers in one precision, with and without convolutions of a single position in float.

    Those are squeeze-excite blocks: little work, and precision changes around it.
    """
    if not base or not space.ops:
        return []
    squeezed = {name for name in base if layers[name].uses == 1 and layers[name].kind != "linear"}
    able = dict.fromkeys((name for name in squeezed if LayerPolicy() in space.layers[name]), LayerPolicy())
    choices = [base, {**base, **able}] if able else [base]
    found = [(choice, _uniform_ops(space, precision)) for choice in choices for precision in ("integer", "float")]
    return [*found, *((choice, {}) for choice in choices[1:])]


def _uniform_ops(space: SearchSpace, precision: Precision) -> dict[str, Precision]:
    return merged(option for options in space.ops.values() for option in options if option.precision == precision)


def _observers(space: SearchSpace) -> list[dict[str, str]]:
    """One for each observer but the configured one: it, wherever it is an option."""
    options = [option for options in space.observers.values() for option in options]
    names = dict.fromkeys(option.observer for option in options if option.observer is not None)
    return [merged_observers(option for option in options if option.observer == name) for name in names]


def _levels(space: SearchSpace) -> list[int]:
    """Bit-widths that some layer can have without pruning, most first; float is the baseline, not a seed."""
    found = {_level(option) for options in space.layers.values() for option in options if not option.prunes}
    return sorted(found - {FLOAT_BITS}, reverse=True)


def _level(option: LayerPolicy) -> int:
    """Weights of 7 bits stand in for those of 8 on devices whose kernels lose sums, and are stored as they are."""
    return INTEGER_BITS if option.bits == NARROW_BITS else option.bits


def _modes(space: SearchSpace) -> list[Activation]:
    """How layers may compute, the fastest first."""
    found = {o.activation for options in space.layers.values() for o in options if o.quantizer is not None}
    return [mode for mode in get_args(Activation) if mode in found]


def _uniform(space: SearchSpace, bits: int, mode: Activation) -> Choice:
    return {name: _nearest(options, bits, mode) for name, options in space.layers.items()}


def _nearest(options: Sequence[LayerPolicy], bits: int, mode: Activation) -> LayerPolicy:
    """The unpruned option with the fewest bits that are at least `bits`, in this mode if it can; else the most precise one."""
    fitting = [option for option in options if not option.prunes and _level(option) >= bits]
    return min(fitting, key=lambda option: (_level(option), option.activation != mode), default=options[0])


def _mix(high: Choice, low: Choice, layers: Mapping[str, Layer], share: float) -> Choice:
    """`low` for the largest layers that hold about `share` of the weights, `high` for the others."""
    total = sum(layers[name].parameters for name in high)
    mixed, taken = dict(high), 0
    for name in sorted(high, key=lambda name: -layers[name].parameters):
        if taken + layers[name].parameters <= share * total:
            mixed[name] = low[name]
            taken += layers[name].parameters
    return mixed


def _float_edges(space: SearchSpace) -> list[Choice]:
    """The first layer, the last, both, and the first two in float, where the space allows it.

    The first layers of a mobile net have few channels: integer kernels are slow there.
    """
    able = [name for name, options in space.layers.items() if LayerPolicy() in options]
    ends = [able[:1], able[-1:], [*able[:1], *able[-1:]], able[:2]] if able else []
    return [dict.fromkeys(end, LayerPolicy()) for end in ends]


@dataclass(frozen=True)
class _Way:
    """A way of pruning that all layers, or all groups of channels, can have in common."""

    pruner: str
    structure: str
    by_threshold: bool
    amount: float

    @classmethod
    def of(cls, option: LayerPolicy | ChannelPolicy) -> _Way:
        """The way of an option that prunes; n:m has no amount besides its structure."""
        structure = option.structure if isinstance(option, LayerPolicy) else CHANNEL
        share = option.sparsity if n_of_m(structure) is None else 0.0
        by_threshold = option.threshold is not None
        return cls(str(option.pruner), structure, by_threshold, share if option.threshold is None else option.threshold)

    def covers(self, other: _Way) -> bool:
        """Whether the other is the same with at most this amount."""
        return other.amount <= self.amount and replace(other, amount=self.amount) == self


def _ways(tables: Iterable[Sequence[LayerPolicy | ChannelPolicy]]) -> list[_Way]:
    """The ways that some table offers, from little to much."""
    found = {_Way.of(option) for options in tables for option in options if option.prunes}
    return sorted(found, key=lambda way: (way.structure, way.by_threshold, way.amount, way.pruner))


def _strongest(options: Sequence[_Option], way: _Way) -> _Option | None:
    """The option that removes most among those that the way covers: a table leaves out what changes nothing."""
    fitting = [option for option in options if option.prunes and way.covers(_Way.of(option))]
    return max(fitting, key=lambda option: _Way.of(option).amount, default=None)


def _pruned(space: SearchSpace, base: Choice) -> list[Choice]:
    """`base` pruned in one way wherever a layer offers it."""
    return [
        {name: _strongest(_alike(options, base[name]), way) or base[name] for name, options in space.layers.items()}
        for way in _ways(space.layers.values())
    ]


def _alike(options: Sequence[LayerPolicy], dense: LayerPolicy) -> list[LayerPolicy]:
    """The options with the codes of a dense one, computed as it is."""
    return [option for option in options if _codes(option) == _codes(dense)]


def _codes(option: LayerPolicy) -> tuple[str | None, int, Activation]:
    return option.quantizer, option.bits, option.activation


def _uneven_cuts(space: SearchSpace, shares: Sequence[Shares]) -> list[dict[str, ChannelPolicy]]:
    """In each group the option nearest to its share."""
    return [
        {name: _nearest_cut(options, pruner, wanted[name]) for name, options in space.channels.items() if name in wanted}
        for pruner, wanted in shares
    ]


def _nearest_cut(options: Sequence[ChannelPolicy], pruner: str, share: float) -> ChannelPolicy:
    fitting = [option for option in options if option.pruner in (pruner, None)]
    return min(fitting, key=lambda option: abs(option.sparsity - share), default=options[0])


def _channel_cuts(space: SearchSpace) -> list[dict[str, ChannelPolicy]]:
    """One way of removing channels in every group that offers it."""
    chosen = [
        {name: _strongest(options, way) for name, options in space.channels.items()} for way in _ways(space.channels.values())
    ]
    return [{name: cut for name, cut in choice.items() if cut is not None} for choice in chosen]
