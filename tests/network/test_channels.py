from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.building.twin import verify_groups
from autocompress.network.channels import (
    ChannelGroup,
    ChannelGroups,
    Entry,
    channel_scores,
    cut_module,
    find_groups,
    keep_indices,
    silenced_module,
)
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import ChannelPolicy
from autocompress.testing import make_layer

if TYPE_CHECKING:
    from tests.conftest import Tiny

TIED = ["depthwise.0", "inner.0", "outer.0", "pointwise", "stem.0"]


def members(group: ChannelGroup) -> set[tuple[str, str]]:
    return {(entry.module, "out" if entry.outputs else "in") for entry in group.entries}


def verified(tiny: Tiny, found: ChannelGroups, folder: Path) -> ChannelGroups:
    task = tiny.task
    return verify_groups(tiny.graph, task.model, found, task.example_input, tiny.components.target, folder)


def images(tiny: Tiny, count: int = 16) -> Tensor:
    return torch.from_numpy(tiny.task.sets["report"].inputs[:count])


# --- the groups of the tiny network ---


def test_groups_of_the_tiny_network(groups: ChannelGroups) -> None:
    found = {
        name: (group.size, members(group), {entry.module for entry in group.norms}) for name, group in groups.groups.items()
    }
    assert found == {
        "inner.0": (32, {("inner.0", "out"), ("outer.0", "in")}, {"inner.1"}),
        "pointwise": (32, {("pointwise", "out"), ("head", "in")}, set()),
        # the residual sum ties its two sides, and the depthwise convolution passes the channels on
        "depthwise.0": (
            16,
            {("stem.0", "out"), ("inner.0", "in"), ("outer.0", "out"), ("depthwise.0", "out"), ("pointwise", "in")},
            {"stem.1", "outer.1", "depthwise.1"},
        ),
    }
    assert groups.refused == {"head": "its channels are an output of the model"}


def test_each_channel_has_its_own_indices(groups: ChannelGroups) -> None:
    for group in groups.groups.values():
        for entry in (*group.entries, *group.norms):
            assert torch.equal(entry.indices, torch.arange(group.size)[:, None])


def test_every_group_passes_verification_alone_and_together(tiny: Tiny, groups: ChannelGroups, tmp_path: Path) -> None:
    assert verified(tiny, groups, tmp_path) is groups
    for name, group in groups.groups.items():
        alone = ChannelGroups({name: group})
        assert verified(tiny, alone, tmp_path) is alone


# --- cutting ---


@pytest.mark.parametrize("name", ["inner.0", "pointwise", "depthwise.0"])
def test_the_cut_module_is_smaller_and_computes_as_if_nothing_read_the_channels(
    tiny: Tiny, groups: ChannelGroups, name: str
) -> None:
    group = groups.groups[name]
    kept = {name: torch.tensor([0, 3, 4, 9, 15])}
    before = copy.deepcopy(tiny.task.model.state_dict())
    cut, silenced = (make(tiny.task.model, groups.groups, kept) for make in (cut_module, silenced_module))
    with torch.no_grad():
        expected = silenced(images(tiny))
        torch.testing.assert_close(cut(images(tiny)), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(tiny.task.model(images(tiny)), expected, atol=0.1)
    for entry in group.entries:
        assert cut.get_submodule(entry.module).get_parameter("weight").shape[0 if entry.outputs else 1] == 5
    assert all(torch.equal(before[key], value) for key, value in tiny.task.model.state_dict().items())


def test_sizes_that_modules_show_follow_the_cut(tiny: Tiny, groups: ChannelGroups) -> None:
    kept = {"depthwise.0": torch.arange(6), "pointwise": torch.arange(4)}
    cut = cut_module(tiny.task.model, groups.groups, kept)
    shown = {name: str(cut.get_submodule(name)) for name in (*TIED, "depthwise.1", "head")}
    assert "Conv2d(1, 6," in shown["stem.0"]
    assert "Conv2d(6, 32," in shown["inner.0"]
    assert "Conv2d(32, 6," in shown["outer.0"]
    assert "Conv2d(6, 6," in shown["depthwise.0"]
    assert "groups=6" in shown["depthwise.0"]
    assert "BatchNorm2d(6," in shown["depthwise.1"]
    assert "Conv2d(6, 4," in shown["pointwise"]
    assert "in_features=4" in shown["head"]


def shuffled(group: ChannelGroup) -> ChannelGroup:
    """The group with the channels of its first reader in a wrong order."""
    wrong = next(entry for entry in group.entries if not entry.outputs)
    entries = tuple(replace(entry, indices=entry.indices.roll(3, 0)) if entry is wrong else entry for entry in group.entries)
    return replace(group, entries=entries)


def without_reader(group: ChannelGroup) -> ChannelGroup:
    return replace(group, entries=tuple(entry for entry in group.entries if entry.outputs))


def without_norms(group: ChannelGroup) -> ChannelGroup:
    return replace(group, norms=())


def rolled_norms(group: ChannelGroup) -> ChannelGroup:
    """Wrong in the module only: in the file the batch norms are part of the weights."""
    return replace(group, norms=tuple(replace(entry, indices=entry.indices.roll(3, 0)) for entry in group.norms))


@pytest.mark.parametrize("spoil", [shuffled, without_reader, without_norms, rolled_norms])
def test_a_wrong_group_is_refused_and_the_others_stay(tiny: Tiny, groups: ChannelGroups, tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    wrong = replace(groups, groups={**groups.groups, "inner.0": spoil(groups.groups["inner.0"])})
    checked = verified(tiny, wrong, tmp_path)
    assert set(checked.groups) == {"pointwise", "depthwise.0"}
    assert checked.refused["head"] == groups.refused["head"]
    assert checked.refused["inner.0"].startswith("its channels cannot be removed")


def test_a_file_that_computes_something_else_is_refused(tiny: Tiny, groups: ChannelGroups, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny.task.model)
    with torch.no_grad():
        other.get_parameter("outer.0.weight").mul_(1.1)
    checked = verify_groups(tiny.graph, other, groups, tiny.task.example_input, tiny.components.target, tmp_path)
    assert not checked.groups
    assert set(checked.refused) == {"head", *groups.groups}


# --- architectures that cannot be cut everywhere ---


class Joined(nn.Module):
    """A concatenation, a grouped convolution, and a flattened image in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3)
        self.join, self.grouped = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, groups=2)
        self.last, self.hidden, self.head = nn.Conv2d(8, 4, 3), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)).relu()
        x = self.last(self.grouped(x).relu()).relu()
        outputs: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return outputs


class Sequences(nn.Module):
    """Linear layers on sequences; the hidden channels may be scaled by a parameter that belongs to no layer."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.linspace(1, 2, 16)) if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(self.norm(x[:, 0])).relu() * self.scale
        outputs: Tensor = self.last(hidden).mean(dim=1)
        return outputs


def exported(model: nn.Module, folder: Path) -> BaseGraph:
    return export(model, torch.ones(1, 1, 8, 8), folder / "fp32.onnx")


def test_what_cannot_be_cut_says_why(tiny: Tiny, tmp_path: Path) -> None:
    model, example = Joined(), images(tiny, 1)
    graph = exported(model, tmp_path)
    found = find_groups(graph, model, example, multiple=1)
    assert {name: members(group) for name, group in found.groups.items()} == {
        "last": {("last", "out"), ("hidden", "in")},
        "hidden": {("hidden", "out"), ("head", "in")},
    }
    assert found.refused == {
        "head": "its channels are an output of the model",
        "grouped": "grouped is a grouped convolution",
        "join": "grouped is a grouped convolution",
        "left": "it covers 8 of the 16 channels of join",
        "right": "it covers 8 of the 16 channels of join",
    }
    flattened = next(entry for entry in found.groups["last"].entries if not entry.outputs)
    assert flattened.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]  # 2 x 2 pixels each
    assert flattened.kept(torch.tensor([1, 3])).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert verify_groups(graph, model, found, example, tiny.components.target, tmp_path) is found


def test_a_cut_that_the_file_cannot_follow_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model, example = Sequences(scaled=True), images(tiny, 1)
    graph = exported(model, tmp_path)
    found = find_groups(graph, model, example, multiple=1)
    checked = verify_groups(graph, model, found, example, tiny.components.target, tmp_path)
    assert not checked.groups
    assert set(checked.refused) == {"first", "last"}


def test_layers_on_sequences_can_be_cut(tiny: Tiny, tmp_path: Path) -> None:
    model, example = Sequences(scaled=False), images(tiny, 1)
    graph = exported(model, tmp_path)
    found = find_groups(graph, model, example, multiple=1)
    checked = verify_groups(graph, model, found, example, tiny.components.target, tmp_path)
    assert members(checked.groups["first"]) == {("first", "out"), ("last", "in")}
    assert set(checked.refused) == {"last"}


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no way")


def test_a_model_that_cannot_be_traced_has_no_groups(tiny: Tiny) -> None:
    found = find_groups(tiny.graph, Untraceable(), images(tiny, 1), 8)
    assert not found.groups
    assert found.refused == {"model": "torch-pruning cannot trace it: ValueError: no way"}


# --- how many and which ---


def group(size: int, multiple: int) -> ChannelGroup:
    identity = torch.arange(size)[:, None]
    return ChannelGroup("a", size, (Entry("a", True, identity), Entry("b", False, identity)), multiple=multiple)


@pytest.mark.parametrize(
    ("size", "multiple", "sparsity", "expected"),
    [(32, 8, 0.3, 24), (32, 8, 0.5, 16), (32, 8, 0.7, 8), (32, 8, 0.99, 8), (32, 1, 0.7, 10), (20, 8, 0.5, 8), (4, 8, 0.5, 4)],
)
def test_the_number_that_stays_is_a_multiple(size: int, multiple: int, sparsity: float, expected: int) -> None:
    assert group(size, multiple).kept_count(sparsity) == expected


def test_more_sparsity_never_keeps_more() -> None:
    for size in (3, 8, 17, 64):
        counts = [group(size, 8).kept_count(share / 100) for share in range(100)]
        assert counts == sorted(counts, reverse=True)
        assert all(min(8, size) <= count <= size for count in counts)
        assert all(count % min(8, size) == 0 for count in counts)


def test_the_channels_with_the_highest_mean_score_stay() -> None:
    layers = {"a": replace(make_layer((4, 2)), name="a"), "b": replace(make_layer((3, 4)), name="b")}
    a = torch.tensor([[1.0, 3.0], [0.0, 0.0], [5.0, 7.0], [2.0, 2.0]])  # means 2, 0, 6, 2; divided by their mean 2.5
    b = torch.tensor([[3.0, 0.0, 0.0, 6.0], [0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # means 1, 3, 0, 2; by 1.5
    # sums: 0.8 + 0.67, 0 + 2, 2.4 + 0, 0.8 + 1.33
    score = channel_scores(group(4, 1), layers, means(a=a, b=b))
    torch.testing.assert_close(score, torch.tensor([0.8 + 2 / 3, 2.0, 2.4, 0.8 + 4 / 3]) / 2)
    torch.testing.assert_close(channel_scores(group(4, 1), layers, means(a=1000 * a, b=b)), score)  # no layer outvotes another
    for decision, kept in [
        (ChannelPolicy("p", 0.5), [2, 3]),
        (ChannelPolicy("p", 0.25), [1, 2, 3]),
        (ChannelPolicy("p", threshold=1.0), [2, 3]),  # 1.0 itself is not above it
        (ChannelPolicy("p", threshold=0.8), [1, 2, 3]),
        (ChannelPolicy("p", threshold=9.0), [2]),  # one unit of channels always stays
    ]:
        assert keep_indices(group(4, 1), score, decision).tolist() == kept


def means(**weights: Tensor) -> Callable[[str, int], Tensor]:
    """Each slice's mean."""
    return lambda layer, axis: weights[layer].movedim(axis, 0).flatten(1).mean(1)


def test_kept_indices_are_ascending_whatever_the_order_of_the_channels() -> None:
    entry = Entry("a", True, torch.tensor([[4, 1], [0, 5], [3, 2]]))
    assert entry.kept(torch.tensor([0, 2])).tolist() == [1, 2, 3, 4]


def test_a_channel_that_spans_several_inputs_counts_all_of_them() -> None:
    layers = {"a": replace(make_layer((2, 1)), name="a"), "b": replace(make_layer((1, 4)), name="b")}
    entries = (Entry("a", True, torch.tensor([[0], [1]])), Entry("b", False, torch.tensor([[0, 1], [2, 3]])))
    spanning = ChannelGroup("a", 2, entries, multiple=1)
    score = channel_scores(spanning, layers, means(a=torch.ones(2, 1), b=torch.tensor([[9.0, 0.0, 5.0, 5.0]])))
    assert keep_indices(spanning, score, ChannelPolicy("p", 0.5)).tolist() == [1]
    np.testing.assert_array_equal(entries[1].kept(torch.tensor([1])).numpy(), [2, 3])
