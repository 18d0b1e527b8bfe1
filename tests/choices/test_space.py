"""Which options each layer has, in which order, and that indices and policies are the same thing said twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.affine import Affine, Int4, Int8
from autocompress_plugins.importance import Importance
from autocompress_plugins.minmax import MinMax
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress_plugins.random_search import RandomSearch
from autocompress_plugins.sparse import Sparse
from optuna.distributions import IntDistribution
from torch import Tensor

from autocompress import Capabilities, ChannelPolicy, Layer, LayerPolicy, Policy, Quantizer
from autocompress.choices.options import build_space, stored_bytes
from autocompress.choices.space import SearchSpace
from autocompress.choices.space_settings import SpaceSettings
from autocompress.components import Components
from autocompress.errors import ConfigError, PolicyError
from autocompress.network.channels import ChannelGroup
from autocompress.network.graph import BaseGraph
from autocompress.testing import make_layer

FLOAT = LayerPolicy()
INT8 = LayerPolicy("int8", 8)
INT4 = LayerPolicy("int4", 4)
DENSE = SpaceSettings(sparsities=[])


@dataclass
class Ladder(Affine):
    """Several widths from one quantizer."""

    name = "ladder"
    bits: int = 8
    widths: list[int] = field(default_factory=lambda: [8, 6, 5, 4, 3, 2])

    def bit_widths(self, layer: Layer) -> list[int]:
        return self.widths


@dataclass
class NoDepthwise(Affine):
    name = "no_depthwise"
    bits: int = 8

    def bit_widths(self, layer: Layer) -> list[int]:
        return [] if layer.kind == "depthwise" else [8]


@dataclass
class Dense(OnnxRuntime):
    """A runtime without packed sparse weights, that stores depthwise weights in 8 bits only."""

    def capabilities(self) -> Capabilities:
        known = super().capabilities()
        return replace(known, packed_sparse=False, containers={**known.containers, "depthwise": (8,)})


def graph(**layers: Layer) -> BaseGraph:
    named = {name: replace(layer, name=name) for name, layer in layers.items()}
    return BaseGraph(Path("fp32.onnx"), b"", None, named, (), ("output",), {})


GRAPH = graph(
    stem=make_layer((16, 1, 3, 3)),
    **{"block.conv": make_layer((32, 16, 3, 3)), "block.depth": make_layer((16, 1, 3, 3), "depthwise")},
    head=make_layer((10, 32), "linear"),
)


def components(quantizers: list[Quantizer], *pruners: Any, target: OnnxRuntime | None = None) -> Components:
    return Components(
        quantizers={quantizer.name: quantizer for quantizer in quantizers},
        pruners={pruner.name: pruner for pruner in pruners},
        observer=MinMax(),
        metric=Accuracy(),
        target=target or OnnxRuntime(),
        sampler=RandomSearch(),
    )


BOTH = components([Int8(), Int4()])


class Unscored:
    """Shares of each layer need no scores: asking for them costs a calibration."""

    def score(self, pruner: str, layer: str) -> Tensor:
        raise AssertionError(f"nobody needs the scores of {pruner} for {layer}")

    group_score = score


NO_SCORES = Unscored()


def space(
    parts: Components = BOTH, settings: SpaceSettings = DENSE, groups: Mapping[str, ChannelGroup] | None = None
) -> SearchSpace:
    return build_space(GRAPH, parts, groups or {}, settings, NO_SCORES)


def test_options_run_from_the_most_precise_to_the_smallest() -> None:
    assert dict(space().layers) == dict.fromkeys(GRAPH.layers, (FLOAT, INT8, INT4))


def test_order_does_not_follow_the_order_of_the_quantizers() -> None:
    assert space(components([Int4(), Int8()])).layers == space().layers


def test_width_stored_in_the_bytes_of_a_wider_one_is_dropped() -> None:
    """6 bits fill a container of 8, and 3 or 2 bits one of 4."""
    offered = space(components([Ladder()])).layers["stem"]
    assert offered == (FLOAT, LayerPolicy("ladder", 8), LayerPolicy("ladder", 4))
    six = replace(Int8(), bits=6)
    assert space(components([six, Ladder()])).layers["stem"] == offered
    assert space(components([six])).layers["stem"] == (FLOAT, LayerPolicy("int8", 6))


def test_two_quantizers_of_one_width_are_both_kept() -> None:
    assert space(components([Int8(), Ladder(widths=[8])])).layers["head"] == (FLOAT, INT8, LayerPolicy("ladder", 8))


def test_width_that_the_target_cannot_store_is_not_offered() -> None:
    class Wide(OnnxRuntime):
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities(), containers={"conv2d": (4,), "linear": (4, 8)})

    found = space(components([Int8(), Int4()], target=Wide())).layers
    assert found["stem"] == (FLOAT, INT4)
    assert found["head"] == (FLOAT, INT8, INT4)
    assert found["block.depth"] == (FLOAT,)


def test_quantizer_decides_which_layers_it_handles() -> None:
    found = space(components([NoDepthwise()]))
    assert found.layers["block.depth"] == (FLOAT,)
    assert found.layers["block.conv"] == (FLOAT, LayerPolicy("no_depthwise", 8))
    assert "block.depth" not in found.distributions


def test_pruned_options_are_kept_where_they_save_bytes() -> None:
    offered = space(components([Int8(), Int4()], Sparse()), SpaceSettings(sparsities=[0.7, 0.3])).layers["block.conv"]
    assert offered == (
        FLOAT,
        INT8,
        LayerPolicy("int8", 8, "sparse", 0.3),  # 8 * 0.7 + 1 = 6.6 bits a weight
        INT4,  # 4
        LayerPolicy("int4", 4, "sparse", 0.3),  # 3.8
        LayerPolicy("int8", 8, "sparse", 0.7),  # 3.4
        LayerPolicy("int4", 4, "sparse", 0.7),  # 2.2
    )


def test_pruned_options_are_dropped_where_the_target_stores_zeros() -> None:
    offered = space(components([Int8(), Int4()], Sparse(), target=Dense()), SpaceSettings(sparsities=[0.5]))
    assert offered.layers["block.conv"] == (FLOAT, INT8, INT4)
    assert offered.layers["block.depth"] == (FLOAT, INT8)


def test_no_option_is_dominated_and_none_is_missing() -> None:
    parts = components([Ladder(), Int8(), Int4()], Sparse(), Importance())
    settings = SpaceSettings(sparsities=[0.1, 0.3, 0.5, 0.7, 0.9])
    capabilities = parts.target.capabilities()
    layer = GRAPH.layers["block.conv"]
    offered = build_space(GRAPH, parts, {}, settings, NO_SCORES).layers["block.conv"]
    quantized = [("ladder", bits) for bits in (8, 6, 5, 4, 3, 2)] + [("int8", 8), ("int4", 4)]
    dense = [FLOAT, *(LayerPolicy(*pair) for pair in quantized)]
    cuts = [(name, share) for name in ("sparse", "importance") for share in settings.sparsities]
    every = [*dense, *(replace(o, pruner=name, sparsity=share) for o in dense for name, share in cuts)]

    def beats(one: LayerPolicy, other: LayerPolicy) -> bool:
        """Keeps more in no more bytes, by the same criterion or without one."""
        more = (one.bits >= other.bits, one.sparsity <= other.sparsity, one.pruner in (other.pruner, None))
        strictly = one.bits > other.bits or one.sparsity < other.sparsity
        return all(more) and strictly and stored_bytes(one, layer, capabilities) <= stored_bytes(other, layer, capabilities)

    assert set(offered) == {option for option in every if not any(beats(other, option) for other in every)}
    assert len(offered) == len(set(offered))
    sizes = [stored_bytes(option, layer, capabilities) for option in offered]
    assert all(larger >= smaller for larger, smaller in pairwise(sizes))


def test_stored_bytes() -> None:
    layer = GRAPH.layers["stem"]  # 144 weights
    capabilities = OnnxRuntime().capabilities()
    expected = {FLOAT: 576, INT8: 144, INT4: 72, LayerPolicy("x", 6): 144, LayerPolicy("x", 3): 72}
    expected |= {LayerPolicy("int8", 8, "sparse", 0.5): 90, LayerPolicy("int8", 8, "sparse", 0.05): 144}
    assert {option: stored_bytes(option, layer, capabilities) for option in expected} == expected


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*"], ["head"], ["stem", "block.conv", "block.depth"]),
        (["block.*"], [], ["block.conv", "block.depth"]),
        (["*"], ["block.*", "stem"], ["head"]),
        (["stem", "*depth"], ["block.conv"], ["stem", "block.depth"]),
        (["bl?ck.conv"], [], ["block.conv"]),
        (["Stem", "head"], [], ["head"]),
    ],
)
def test_layers_are_chosen_by_glob(include: list[str], exclude: list[str], expected: list[str]) -> None:
    found = space(settings=replace(DENSE, include=include, exclude=exclude))
    assert list(found.layers) == expected
    everything = dict.fromkeys(expected, 2)
    assert set(found.policy(everything).layers) == set(expected)


def test_float_can_be_left_out() -> None:
    found = space(settings=replace(DENSE, allow_float=False))
    assert found.layers["stem"] == (INT8, INT4)
    assert found.policy({}).layers == dict.fromkeys(GRAPH.layers, INT8)


def test_layer_without_a_quantizer_stays_float_even_then() -> None:
    found = space(components([NoDepthwise(), Int4()], target=OnnxRuntime()), replace(DENSE, allow_float=False))
    assert found.layers["block.depth"] == (INT4,)
    only = space(components([NoDepthwise(), Ladder(widths=[4])], target=Dense()), replace(DENSE, allow_float=False))
    assert only.layers["block.depth"] == (LayerPolicy("ladder", 4),)


def group(name: str, size: int, multiple: int = 8) -> ChannelGroup:
    return ChannelGroup(name, size, (), (), multiple)


def test_channel_options_leave_different_numbers_of_channels() -> None:
    parts = components([Int8()], Sparse(), Importance())
    settings = SpaceSettings(sparsities=[0.6, 0.3, 0.5, 0.1])
    groups = {"stem": group("stem", 16), "block.conv": group("block.conv", 32)}
    found = build_space(GRAPH, parts, groups, settings, NO_SCORES).channels
    # 16 channels in steps of 8: only 8 are left besides all; 32: 24, 16, 16 and 8 steps less for the last two shares
    assert [option.sparsity for option in found["stem"] if option.pruner != "importance"] == [0.0, 0.3]
    assert found["block.conv"][0] == ChannelPolicy()
    shares = [option.sparsity for option in found["block.conv"] if option.pruner == "sparse"]
    assert [groups["block.conv"].kept_count(share) for share in shares] == [24, 16]
    assert {option.pruner for option in found["block.conv"]} == {None, "sparse", "importance"}


# --- structures, thresholds and scopes ---


def test_n_of_m_is_offered_with_the_share_that_each_layer_loses() -> None:
    """The stem has one input channel and nine places: 2 of 4, 2 of 4, 1 of 1 stay."""
    parts = components([Int8()], Sparse(), Importance())
    found = space(parts, SpaceSettings(sparsities=[], structures=["2:4"]))
    shares = {"stem": 4 / 9, "block.conv": 0.5, "block.depth": 4 / 9, "head": 0.5}
    for name, share in shares.items():
        cuts = [LayerPolicy("int8", 8, pruner, share, "2:4") for pruner in ("sparse", "importance")]
        assert list(found.layers[name]) == [FLOAT, INT8, *cuts]
    assert found.channels == {}


def test_structures_do_not_dominate_each_other() -> None:
    """2:4 loses as much as half of the weights; which half is better is for the search to find out."""
    found = space(components([Int8()], Sparse()), SpaceSettings(sparsities=[0.5], structures=["unstructured", "2:4", "1:4"]))
    cuts = [(option.structure, option.sparsity) for option in found.layers["head"] if option.prunes]
    assert sorted(cuts) == [("1:4", 0.75), ("2:4", 0.5), ("unstructured", 0.5)]


@dataclass
class Known:
    """Given scores, by the name of the layer or group, and by pruner where they differ."""

    scores: Mapping[str, Tensor]

    def score(self, pruner: str, layer: str) -> Tensor:
        return self.scores.get(f"{pruner}/{layer}", self.scores.get(layer, torch.ones(4)))

    group_score = score


def ramp(layer: Layer, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, layer.parameters).reshape(layer.shape)


def test_threshold_is_offered_with_the_share_that_it_reaches_and_only_where_it_removes_something() -> None:
    stem, head = GRAPH.layers["stem"], GRAPH.layers["head"]  # 144 and 320 weights
    known = Known({"stem": ramp(stem, 0, 1), "head": ramp(head, 1, 2)})
    settings = SpaceSettings(sparsities=[], thresholds=[0.5, 1.5, -1.0], structures=["unstructured"])
    found = build_space(GRAPH, components([Int8()], Sparse()), {}, settings, known).layers
    assert found["stem"] == (FLOAT, INT8, LayerPolicy("int8", 8, "sparse", 0.5, threshold=0.5))  # 1.5 would leave nothing
    assert found["head"] == (FLOAT, INT8, LayerPolicy("int8", 8, "sparse", 0.5, threshold=1.5))
    assert found["block.conv"] == (FLOAT, INT8)


def test_global_share_is_one_threshold_for_all_layers() -> None:
    """Half of all 5,216 scores lies in the largest layer, which alone is below the common threshold."""
    low = dict.fromkeys(("stem", "block.depth", "head"), 1.0) | {"block.conv": 0.0}
    known = Known({name: ramp(layer, low[name], low[name] + 0.9) for name, layer in GRAPH.layers.items()})
    settings = SpaceSettings(sparsities=[0.5], structures=["unstructured"], scope="global")
    found = build_space(GRAPH, components([Int8()], Sparse()), {}, settings, known).layers
    (cut,) = [option for option in found["block.conv"] if option.prunes]
    every = np.concatenate([known.scores[name].numpy().ravel() for name in GRAPH.layers])
    assert cut.threshold == np.sort(every)[len(every) // 2 - 1]
    assert cut.sparsity == pytest.approx(len(every) / 2 / 4608, abs=1e-3)
    assert all(not option.prunes for name in low if name != "block.conv" for option in found[name])


def test_global_threshold_is_of_each_pruner_and_of_included_layers() -> None:
    known = Known(
        {
            f"{pruner}/{name}": factor * ramp(layer, 0, 1)
            for name, layer in GRAPH.layers.items()
            for pruner, factor in [("sparse", 1.0), ("importance", 100.0)]
        }
    )
    settings = SpaceSettings(sparsities=[0.3], structures=["unstructured"], scope="global", include=["head"])
    found = build_space(GRAPH, components([Int8()], Sparse(), Importance()), {}, settings, known).layers
    assert list(found) == ["head"]
    cuts = {option.pruner: option for option in found["head"] if option.prunes}
    assert {name: cut.threshold for name, cut in cuts.items()} == pytest.approx(
        {"sparse": 95 / 319, "importance": 9500 / 319}, rel=1e-5
    )
    assert [cut.sparsity for cut in cuts.values()] == [0.3, 0.3]


def test_channels_take_thresholds_and_a_global_share_too() -> None:
    groups = {"stem": group("stem", 16), "block.conv": group("block.conv", 32)}
    known = Known({"stem": torch.linspace(1, 2, 16), "block.conv": torch.linspace(0, 2, 32)})
    settings = SpaceSettings(sparsities=[0.5], structures=["channel"], thresholds=[0.6])
    offered = build_space(GRAPH, components([Int8()], Sparse()), groups, settings, known).channels
    assert offered["stem"] == (ChannelPolicy(), ChannelPolicy("sparse", 0.5))
    below = 10 / 32  # scores 0, 2 / 31, ..., 18 / 31; 24 channels stay
    assert offered["block.conv"] == (ChannelPolicy(), ChannelPolicy("sparse", below, 0.6), ChannelPolicy("sparse", 0.5))

    offered = build_space(
        GRAPH, components([Int8()], Sparse()), groups, replace(settings, thresholds=[], scope="global"), known
    )
    ranked = np.sort(np.concatenate([known.scores["stem"], known.scores["block.conv"]]))
    (cut,) = offered.channels["block.conv"][1:]
    assert cut == ChannelPolicy("sparse", float((known.scores["block.conv"] <= cut.threshold).sum()) / 32, ranked[23])
    assert offered.channels["stem"] == (ChannelPolicy(),)  # 4 of 16 are below: 12 would stay, in steps of 8 that is 16


def test_seed_policy_need_not_know_what_share_follows() -> None:
    stem = GRAPH.layers["stem"]
    settings = SpaceSettings(sparsities=[], thresholds=[0.5], structures=["unstructured", "2:4", "channel"])
    known = Known({"stem": ramp(stem, 0, 1), "group": torch.linspace(0, 2, 16)})
    offered = build_space(GRAPH, components([Int8()], Sparse()), {"stem": group("group", 16)}, settings, known)
    asked = Policy(
        {"stem": LayerPolicy("int8", 8, "sparse", threshold=0.5), "head": LayerPolicy("int8", 8, "sparse", 0.0, "2:4")}
    )
    chosen = offered.policy(offered.indices(asked))
    assert {name: option.sparsity for name, option in chosen.layers.items()} == {"stem": 0.5, "head": 0.5}
    with pytest.raises(PolicyError, match="this space offers"):
        offered.indices(Policy({"stem": LayerPolicy("int8", 8, "sparse", threshold=0.4)}))


@pytest.mark.parametrize("settings", [SpaceSettings(structures=["unstructured"]), SpaceSettings(exclude=["stem"])])
def test_channels_are_not_cut_where_they_must_not(settings: SpaceSettings) -> None:
    assert space(components([Int8()], Sparse()), settings, {"stem": group("stem", 16)}).channels == {}


def test_single_weights_are_not_cut_where_only_channels_may() -> None:
    found = space(components([Int8()], Sparse()), SpaceSettings(structures=["channel"]), {"stem": group("stem", 16)})
    assert found.layers["stem"] == (FLOAT, INT8)
    assert len(found.channels["stem"]) > 1


@pytest.fixture
def rich() -> SearchSpace:
    parts = components([Int8(), Int4()], Sparse(), Importance())
    return space(parts, SpaceSettings(), {"stem": group("stem", 16), "block.conv": group("block.conv", 32)})


def test_optuna_sees_one_integer_for_each_decision(rich: SearchSpace) -> None:
    expected = {name: len(options) for name, options in rich.layers.items()}
    expected |= {f"channels/{name}": len(options) for name, options in rich.channels.items()}
    assert rich.distributions == {name: IntDistribution(0, size - 1) for name, size in expected.items()}


def test_policy_and_indices_are_inverse(rich: SearchSpace) -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        indices = {name: int(random.integers(d.high + 1)) for name, d in rich.distributions.items()}  # type: ignore[attr-defined]
        policy = rich.policy(indices)
        assert rich.indices(policy) == indices
        assert rich.policy(rich.indices(policy)) == policy
        seen.add(policy.digest)
    assert len(seen) > 90


def test_index_zero_everywhere_is_the_model_as_it_is(rich: SearchSpace) -> None:
    assert rich.policy(dict.fromkeys(rich.distributions, 0)) == rich.policy({}) == Policy()
    assert rich.indices(Policy()) == dict.fromkeys(rich.distributions, 0)


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Policy({"tail": INT8}), "seed policy decides 'tail', which is not searched; searched: stem, block.conv"),
        (Policy({"stem": LayerPolicy("int8", 7)}), "bits=7.* for 'stem'; this space offers"),
        (Policy({"stem": LayerPolicy("int8", 8, "stability", 0.5)}), "for 'stem'; this space offers"),
        (Policy(channels={"head": ChannelPolicy("sparse", 0.5)}), "seed policy decides 'head', which is not searched"),
        (Policy(channels={"stem": ChannelPolicy("sparse", 0.51)}), "sparsity=0.51.* for 'stem'; this space offers"),
        (Policy({"stem": INT8}, ops={"n3": "float"}), "seed policy decides the operator 'n3'; it is not searched"),
    ],
)
def test_seed_outside_the_space_is_refused(rich: SearchSpace, policy: Policy, problem: str) -> None:
    with pytest.raises(PolicyError, match=problem):
        rich.indices(policy)


def test_digest_changes_with_any_option() -> None:
    spaces = [
        space(),
        space(components([Int8()])),
        space(settings=replace(DENSE, exclude=["head"])),
        space(settings=replace(DENSE, allow_float=False)),
        space(components([Int8(), Int4()], Sparse()), SpaceSettings()),
        space(components([Int8(), Int4()], Sparse()), SpaceSettings(), {"stem": group("stem", 16)}),
    ]
    assert len({each.digest for each in spaces}) == len(spaces)
    assert space().digest == space().digest


@pytest.mark.parametrize("settings", [SpaceSettings(include=["tail"]), SpaceSettings(exclude=["*"])])
def test_nothing_to_decide_is_refused(settings: SpaceSettings) -> None:
    with pytest.raises(
        ConfigError, match=r"space: nothing to decide for 4 layers \(include=.*expected at least one layer with two"
    ):
        space(settings=settings)


WORDS = graph(
    tokens=make_layer((60, 16), "embedding"),
    line=make_layer((16, 16, 3), "conv1d"),
    up=make_layer((16, 8, 4), "conv_transpose", channel_axis=1),
    head=make_layer((10, 32), "linear"),
)


def modes(*activations: str, parts: Components = BOTH) -> dict[str, list[tuple[int, str]]]:
    """Bits and activation of each quantized option of each layer."""
    found = build_space(WORDS, parts, {}, replace(DENSE, activations=list(activations)), NO_SCORES)
    return {name: [(o.bits, o.activation) for o in options if o.quantizer] for name, options in found.layers.items()}


def test_layers_compute_statically_unless_they_cannot() -> None:
    stored, static = [(8, "float"), (4, "float")], [(8, "static"), (4, "static")]
    assert modes("static") == {"tokens": stored, "line": static, "up": stored, "head": static}


def test_each_activation_that_the_target_has_for_a_kind_is_an_option() -> None:
    found = modes("dynamic", "static")
    assert found["head"] == [(8, "static"), (8, "dynamic"), (4, "static"), (4, "dynamic")]
    assert found["line"] == [(8, "static"), (4, "static")]
    assert modes("float")["line"] == [(8, "float"), (4, "float")]
    assert modes("dynamic")["line"] == [(8, "static"), (8, "float"), (4, "static"), (4, "float")]  # what it can do at all


def test_pruned_options_compute_like_the_dense_ones() -> None:
    parts = components([Int8()], Sparse())
    options = build_space(
        WORDS, parts, {}, SpaceSettings(activations=["static", "dynamic"], sparsities=[0.5]), NO_SCORES
    ).layers["head"]
    assert {(o.sparsity, o.activation) for o in options if o.quantizer} == {
        (0.0, "static"),
        (0.0, "dynamic"),
        (0.5, "static"),
        (0.5, "dynamic"),
    }


def test_blocks_of_inputs_compute_in_float_only() -> None:
    blocks = Int4(group_size=32)
    found = modes("static", "dynamic", parts=components([Int8(), blocks]))
    assert found["head"] == [(8, "static"), (8, "dynamic"), (4, "float")]
    assert found["line"] == [(8, "static"), (4, "static")]  # a convolution has no blocks


def test_blocks_are_not_offered_where_the_target_has_none() -> None:
    class Plain(OnnxRuntime):
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities(), group_sizes=frozenset())

    assert modes("static", parts=components([Int8(), Int4(group_size=32)], target=Plain()))["head"] == [(8, "static")]


def test_one_option_each_is_nothing_to_decide() -> None:
    with pytest.raises(ConfigError, match=r"quantizers=\['int8'\], pruners=\[\]"):
        space(components([Int8()]), replace(DENSE, allow_float=False))
    with pytest.raises(ConfigError, match=r"quantizers=\[\], pruners=\['sparse'\]"):
        space(components([], Sparse()), SpaceSettings(structures=["unstructured"]))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sparsities": [0.5, 0.0]}, r"space\.sparsities=\[0\.0\]: expected shares between 0 and 1"),
        ({"sparsities": [1.0, 50]}, r"space\.sparsities=\[1\.0, 50\]"),
        ({"sparsities": [float("nan")]}, r"space\.sparsities=\[nan\]"),
        ({"structures": ["channels"]}, r"space\.structures=\['channels'\]: expected 'unstructured', 'channel' or n:m"),
        ({"channel_multiple": 0}, r"space\.channel_multiple=0: expected at least 1"),
        (
            {"structures": ["124"]},
            r"space\.structures=\['124'\]: expected .* \(YAML reads it as a time of day without quotes\)",
        ),
        ({"structures": ["4:2"]}, r"space\.structures=\['4:2'\]"),
        ({"thresholds": [0.1, float("inf")]}, r"space\.thresholds=\[0\.1, inf\]: expected finite scores"),
        ({"activations": ["int8"]}, r"space\.activations=\['int8'\]: expected some of static, dynamic, float"),
        ({"activations": []}, r"space\.activations=\[\]"),
        ({"scope": "model"}, r"space\.scope='model': expected one of layer, global"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SpaceSettings(**values)
