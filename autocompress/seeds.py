"""Policies worth trying before a sampler has learned anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from autocompress.graph import Layer
from autocompress.policy import FLOAT_BITS, ChannelPolicy, LayerPolicy, Policy
from autocompress.space import SearchSpace

MIXES = (0.25, 0.5, 0.75, 0.9)
"""Shares of all weights that a mixed seed gives the fewer bits to, largest layers first."""

Choice = Mapping[str, LayerPolicy]


def seed_policies(space: SearchSpace, layers: Mapping[str, Layer]) -> list[Policy]:
    """Uniform policies, mixes of neighbouring precisions, then each way of pruning alone on the most precise codes.

    The first and the last layer are the ones that most often have to stay float. In a mix the large layers go to fewer bits
    first: they give the most bytes, and small ones tend to be sensitive.
    """
    uniform = [_uniform(space, bits) for bits in _levels(space)]
    edges = [{**uniform[0], **edge} for edge in _float_edges(space)] if uniform else []
    mixes = [_mix(high, low, layers, share) for high, low in pairwise(uniform) for share in MIXES]
    base = uniform[0] if uniform else {}
    policies = [_policy(choice) for choice in [*uniform, *edges, *mixes, *_pruned(space, base)]]
    policies += [_policy(base, cut) for cut in _channel_cuts(space)]
    return list({policy.digest: policy for policy in policies if policy != Policy()}.values())


def _policy(layers: Choice, channels: Mapping[str, ChannelPolicy] | None = None) -> Policy:
    return Policy({name: option for name, option in layers.items() if option != LayerPolicy()}, channels or {})


def _levels(space: SearchSpace) -> list[int]:
    """Bit-widths that some layer can have without pruning, most first; float is the baseline, not a seed."""
    found = {option.bits for options in space.layers.values() for option in options if option.sparsity == 0}
    return sorted(found - {FLOAT_BITS}, reverse=True)


def _uniform(space: SearchSpace, bits: int) -> Choice:
    return {name: _nearest(options, bits) for name, options in space.layers.items()}


def _nearest(options: Sequence[LayerPolicy], bits: int) -> LayerPolicy:
    """The unpruned option with the fewest bits that are at least `bits`, else the most precise one."""
    fitting = [option for option in options if option.sparsity == 0 and option.bits >= bits]
    return min(fitting, key=lambda option: option.bits, default=options[0])


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
    """The first layer, the last, and both in float, where the space allows it."""
    able = [name for name, options in space.layers.items() if LayerPolicy() in options]
    ends = [able[:1], able[-1:], [*able[:1], *able[-1:]]] if able else []
    return [dict.fromkeys(end, LayerPolicy()) for end in ends]


def _pruned(space: SearchSpace, base: Choice) -> list[Choice]:
    """`base` with one pruner and share wherever a layer offers it."""
    ways = {(o.pruner, o.sparsity) for options in space.layers.values() for o in options if o.sparsity > 0}
    return [
        {name: _cut(options, base[name], pruner, share) for name, options in space.layers.items()}
        for pruner, share in sorted(ways, key=str)
    ]


def _cut(options: Sequence[LayerPolicy], dense: LayerPolicy, pruner: str | None, share: float) -> LayerPolicy:
    wanted = LayerPolicy(dense.quantizer, dense.bits, pruner, share)
    return wanted if wanted in options else dense


def _channel_cuts(space: SearchSpace) -> list[dict[str, ChannelPolicy]]:
    """One pruner and share in every group that offers it."""
    ways = {option for options in space.channels.values() for option in options if option.sparsity > 0}
    return [
        {name: way for name, options in space.channels.items() if way in options}
        for way in sorted(ways, key=lambda way: (way.sparsity, str(way.pruner)))
    ]
