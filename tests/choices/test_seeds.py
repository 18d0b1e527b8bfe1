"""The policies that are tried first: sensible, all inside the space, none twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress import ChannelPolicy, Layer, LayerPolicy, Policy
from autocompress.choices.seeds import MIXES, seed_policies, uniform_policies
from autocompress.choices.space import SearchSpace
from autocompress.testing import make_layer

FLOAT, INT8, INT4 = LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4)

SIZES = {"small": (1, 10), "middle": (3, 10), "large": (6, 10)}
LAYERS: dict[str, Layer] = {name: replace(make_layer(shape, "linear"), name=name) for name, shape in SIZES.items()}
MIXED = SearchSpace(dict.fromkeys(LAYERS, (FLOAT, INT8, INT4)), {})


def mixes(found: list[Policy]) -> list[Policy]:
    """The seeds with both precisions."""
    return [policy for policy in found if set(policy.layers.values()) == {INT8, INT4}]


def test_uniform_policies_come_first_the_most_precise_before_the_others() -> None:
    first, second = seed_policies(MIXED, LAYERS)[:2]
    assert first == Policy(dict.fromkeys(LAYERS, INT8))
    assert second == Policy(dict.fromkeys(LAYERS, INT4))


def test_uniform_policies_alone_are_those_the_seeds_begin_with() -> None:
    assert uniform_policies(MIXED) == seed_policies(MIXED, LAYERS)[:2]
    assert uniform_policies(SearchSpace(dict.fromkeys(LAYERS, (FLOAT,)), {})) == []


def test_first_and_last_layers_are_tried_in_float() -> None:
    found = seed_policies(MIXED, LAYERS)[2:6]
    kept = [{"middle", "large"}, {"small", "middle"}, {"middle"}, {"large"}]
    assert found == [Policy({name: INT8 for name in LAYERS if name in names}) for names in kept]


def test_each_mix_takes_the_largest_layers_that_fit_its_share() -> None:
    found = [
        {name for name, option in policy.layers.items() if option == INT4} for policy in mixes(seed_policies(MIXED, LAYERS))
    ]
    # shares of the weights: 0.1, 0.3 and 0.6; the mixes give 4 bits to at most 0.25, 0.5, 0.75 and 0.9 of them
    assert MIXES == (0.25, 0.5, 0.75, 0.9)
    assert found == [{"small"}, {"middle", "small"}, {"large", "small"}, {"large", "middle"}]


def test_layer_without_the_width_takes_the_next_more_precise_one() -> None:
    space = SearchSpace({"small": (FLOAT, INT8), "middle": (FLOAT,), "large": (FLOAT, INT8, INT4)}, {})
    assert seed_policies(space, LAYERS)[1] == Policy({"small": INT8, "large": INT4})


def test_each_way_of_computing_is_tried_in_all_layers_that_offer_it() -> None:
    stored = replace(INT8, activation="float")
    dynamic, dynamic4 = replace(INT8, activation="dynamic"), replace(INT4, activation="dynamic")
    both = (FLOAT, INT8, dynamic, INT4, dynamic4)
    space = SearchSpace({"small": (FLOAT, stored), "middle": both, "large": both}, {})
    found = [dict(policy.layers) for policy in seed_policies(space, LAYERS)]
    assert found[:4] == [{"small": stored, "middle": first, "large": first} for first in (INT8, INT4, dynamic, dynamic4)]
    for layers in found[4:]:
        assert len({layers[name].activation for name in ("middle", "large") if name in layers}) <= 1  # never a mixture


def test_pruning_is_tried_on_the_most_precise_codes_one_way_at_a_time() -> None:
    cut, deeper = replace(INT8, pruner="sparse", sparsity=0.5), replace(INT8, pruner="sparse", sparsity=0.7)
    other = replace(INT8, pruner="importance", sparsity=0.5)
    space = SearchSpace({**dict.fromkeys(LAYERS, (INT8, cut, deeper, other)), "small": (INT8,)}, {})
    found = seed_policies(space, LAYERS)
    expected = [{**dict.fromkeys(LAYERS, option), "small": INT8} for option in (other, cut, deeper)]
    assert found[0] == Policy(dict.fromkeys(LAYERS, INT8))
    assert sorted(p.digest for p in found[1:]) == sorted(Policy(layers).digest for layers in expected)


def test_structures_and_thresholds_are_ways_of_their_own() -> None:
    """A layer on which a threshold removes nothing has the option of the next lower one."""
    half = replace(INT8, pruner="sparse", sparsity=0.5)
    two, odd = replace(half, structure="2:4"), replace(half, structure="2:4", sparsity=4 / 9)
    low, high = replace(half, sparsity=0.1, threshold=0.01), replace(half, sparsity=0.6, threshold=0.02)
    layers = {"small": (INT8, half, odd, low), "middle": (INT8, two, low, high), "large": (INT8, half, two)}
    found = [dict(policy.layers) for policy in seed_policies(SearchSpace(layers, {}), LAYERS)]
    assert found == [
        dict.fromkeys(LAYERS, INT8),
        {"small": odd, "middle": two, "large": two},
        {"small": half, "middle": INT8, "large": half},
        {"small": low, "middle": low, "large": INT8},
        {"small": low, "middle": high, "large": INT8},
    ]


def test_each_way_of_cutting_channels_is_tried_in_all_groups_that_offer_it() -> None:
    little, much = ChannelPolicy("sparse", 0.3), ChannelPolicy("sparse", 0.5)
    groups = {"small": (ChannelPolicy(), little), "large": (ChannelPolicy(), little, much)}
    found = seed_policies(SearchSpace(dict.fromkeys(LAYERS, (INT8,)), groups), LAYERS)
    base = dict.fromkeys(LAYERS, INT8)
    assert found == [
        Policy(base),
        Policy(base, {"small": little, "large": little}),
        Policy(base, {"small": little, "large": much}),  # the most that each group offers
    ]


def test_first_and_last_layer_stay_quantized_where_float_is_not_allowed() -> None:
    found = seed_policies(SearchSpace(dict.fromkeys(LAYERS, (INT8, INT4)), {}), LAYERS)
    assert all(set(policy.layers) == set(LAYERS) for policy in found)


def test_float_models_can_be_pruned_too() -> None:
    groups = {"small": (ChannelPolicy(), ChannelPolicy("sparse", 0.5))}
    found = seed_policies(SearchSpace(dict.fromkeys(LAYERS, (FLOAT,)), groups), LAYERS)
    assert found == [Policy(channels={"small": ChannelPolicy("sparse", 0.5)})]


@pytest.mark.parametrize("options", [(FLOAT, INT8), (FLOAT, INT4), (INT8, INT4), (FLOAT, INT8, INT4)])
def test_every_seed_lies_in_the_space_once_and_none_is_the_baseline(options: tuple[LayerPolicy, ...]) -> None:
    space = SearchSpace(dict.fromkeys(LAYERS, options), {"large": (ChannelPolicy(), ChannelPolicy("sparse", 0.5))})
    found = seed_policies(space, LAYERS)
    assert Policy() not in found
    assert len({policy.digest for policy in found}) == len(found)
    for policy in found:
        assert space.policy(space.indices(policy)) == policy


def test_uneven_shares_take_the_nearest_option_of_their_pruner() -> None:
    options = (ChannelPolicy(), ChannelPolicy("sparse", 0.25), ChannelPolicy("other", 0.5), ChannelPolicy("sparse", 0.75))
    space = SearchSpace(dict.fromkeys(LAYERS, (INT8,)), {"a": options, "b": options, "c": options})
    found = seed_policies(space, LAYERS, [("sparse", {"a": 0.3, "b": 0.05, "c": 0.6})])
    wanted = {"a": ChannelPolicy("sparse", 0.25), "c": ChannelPolicy("sparse", 0.75)}
    assert Policy(dict.fromkeys(LAYERS, INT8), wanted) in found
