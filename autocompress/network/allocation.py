"""How many channels each group loses when a share of all channels is to go: the ones that cost least for what they compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autocompress.network.channels import ChannelGroup, file_axis
from autocompress.network.graph import Layer

MOST = 0.75
"""No group loses more than this share: below it, what is left of a layer no longer learns."""


def allocate(
    groups: Mapping[str, ChannelGroup],
    layers: Mapping[str, Layer],
    scores: Mapping[str, Tensor],
    share: float,
    cost_power: float = 2.0,
) -> dict[str, float]:
    """Share of each group's channels to remove, so that `share` of the channels of all groups together goes.

    Channels of all groups are ranked by importance / macs^cost_power: a group whose channels matter little or compute much
    loses more. (A knapsack's greedy order for power 1; a higher one pays for latency, which on narrow layers with many
    positions is more than their multiply-accumulates.)

    Args:
        scores: layer name to the score of each weight, comparable between layers, as Taylor importance is.
    """
    value = {name: _importance(group, layers, scores) / _macs(group, layers) ** cost_power for name, group in groups.items()}
    ranked = torch.cat(list(value.values())).sort().values
    total = sum(group.size for group in groups.values())
    low, high = 0, len(ranked) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _removed(groups, value, ranked[middle]) < share * total else (low, middle)
    return {name: _share(value[name], ranked[low]) for name in groups}


def _importance(group: ChannelGroup, layers: Mapping[str, Layer], scores: Mapping[str, Tensor]) -> Tensor:
    """Sum of the scores of each channel's weights in all tied layers: (size,)."""
    total = torch.zeros(group.size)
    for entry in group.entries:
        along = scores[entry.module].movedim(file_axis(entry, layers[entry.module]), 0).flatten(1).sum(1)
        total += along[entry.indices].sum(1)
    return total


def _macs(group: ChannelGroup, layers: Mapping[str, Layer]) -> float:
    """Multiply-accumulates that one channel takes part in."""
    return sum(layers[entry.module].macs for entry in group.entries) / group.size


def _share(value: Tensor, threshold: Tensor) -> float:
    return min(MOST, float((value <= threshold).float().mean()))


def _removed(groups: Mapping[str, ChannelGroup], value: Mapping[str, Tensor], threshold: Tensor) -> int:
    return sum(group.size - group.kept_count(_share(value[name], threshold)) for name, group in groups.items())
