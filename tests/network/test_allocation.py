"""Uneven shares of channels, against a brute-force ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from autocompress.network.allocation import MOST, allocate
from autocompress.network.channels import ChannelGroups

if TYPE_CHECKING:
    from tests.conftest import Tiny


@pytest.fixture
def scores(tiny: Tiny) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tiny.graph.initializers[layer.weight]).square() for name, layer in tiny.graph.layers.items()}


def removed(groups: ChannelGroups, shares: Mapping[str, float]) -> int:
    return sum(group.size - group.kept_count(shares[name]) for name, group in groups.groups.items())


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_the_share_of_all_channels_goes(groups: ChannelGroups, tiny: Tiny, scores: dict[str, Tensor], share: float) -> None:
    """To within the multiple that the groups are cut in."""
    shares = allocate(groups.groups, tiny.graph.layers, scores, share)
    total = sum(group.size for group in groups.groups.values())
    assert abs(removed(groups, shares) - share * total) <= max(group.multiple for group in groups.groups.values())
    assert all(cut <= MOST for cut in shares.values())


def test_unimportant_channels_go_first(groups: ChannelGroups, tiny: Tiny, scores: dict[str, Tensor]) -> None:
    """A group without any importance loses all it may before another loses anything."""
    name = next(iter(groups.groups))
    own = {entry.module for entry in groups.groups[name].entries}
    silent = {layer: score * (0.0 if layer in own else 1.0) for layer, score in scores.items()}
    shares = allocate(groups.groups, tiny.graph.layers, silent, 0.05)
    assert shares[name] == MOST
    assert sum(shares.values()) == MOST


def test_the_power_decides_how_much_cost_counts(groups: ChannelGroups, tiny: Tiny, scores: dict[str, Tensor]) -> None:
    """Dear channels go before cheap ones the more, the higher the power."""
    cost = {
        name: sum(tiny.graph.layers[entry.module].macs for entry in group.entries) / group.size
        for name, group in groups.groups.items()
    }
    dearest = max(cost, key=lambda name: cost[name])
    blind, aware = (allocate(groups.groups, tiny.graph.layers, scores, 0.3, cost_power=power) for power in (0.0, 8.0))
    assert aware[dearest] == MOST
    assert blind[dearest] < MOST
