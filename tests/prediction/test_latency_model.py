from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from autocompress.network.channels import ChannelGroups
from autocompress.network.tensor_sizes import tensor_sizes
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.prediction.latency_model import LatencyFeatures, LatencyModel, Observation

if TYPE_CHECKING:
    from tests.conftest import Tiny

INT8 = LayerPolicy("int8", 8)


@pytest.fixture(scope="module")
def features(tiny: Tiny, groups: ChannelGroups) -> LatencyFeatures:
    return LatencyFeatures(tiny.graph, groups.groups, tiny.components.target.capabilities())


def policies(tiny: Tiny, count: int) -> list[Policy]:
    random = np.random.default_rng(0)
    return [Policy({name: INT8 for name in tiny.graph.layers if random.random() < 0.6}) for _ in range(count)]


def test_tensors_have_the_sizes_that_the_module_computes(tiny: Tiny) -> None:
    sizes = tensor_sizes(tiny.graph)
    assert sizes["input"] == 64
    assert [sizes[layer.output] for layer in tiny.graph.layers.values()] == [16 * 64, 32 * 64, 16 * 64, 16 * 16, 32 * 16, 10]


def test_fp32_is_the_origin(features: LatencyFeatures) -> None:
    assert not features.of(Policy()).any()
    mean, _ = LatencyModel.fit(features, []).predict([Policy()])
    assert mean[0] == 1.0


def test_bits_do_not_change_the_time_but_precision_does(tiny: Tiny, features: LatencyFeatures) -> None:
    eight, four = (Policy({"inner.0": LayerPolicy("int8", bits)}) for bits in (8, 4))
    assert (features.of(eight) == features.of(four)).all()
    assert features.of(eight).any()


def test_one_integer_layer_among_float_ones_changes_precision_before_and_after_it(features: LatencyFeatures) -> None:
    assert features.of(Policy({"inner.0": INT8})).tolist().count(1.0) >= 3  # the operator, quantize, dequantize


def test_integers_are_expected_to_be_faster(tiny: Tiny, features: LatencyFeatures) -> None:
    mean, spread = LatencyModel.fit(features, []).predict([Policy(dict.fromkeys(tiny.graph.layers, INT8))])
    assert 0.3 < mean[0] < 0.8
    assert spread[0] > 0.05


def test_removed_channels_are_expected_to_save_time(tiny: Tiny, features: LatencyFeatures, groups: ChannelGroups) -> None:
    cut = [Policy({}, {name: ChannelPolicy("sparse", 0.5)}) for name in groups.groups]
    mean, _ = LatencyModel.fit(features, []).predict(cut)
    assert len(cut) > 0
    assert (mean < 1).all()


def test_costs_are_learned_from_measured_files(tiny: Tiny, features: LatencyFeatures) -> None:
    """Made-up costs of operators and changes are found again, and sureness grows."""
    random = np.random.default_rng(1)
    true = features.prior * np.exp(0.4 * random.normal(size=len(features.prior)))
    made = [Observation(policy, 1 + float(features.of(policy) @ true), 0.001) for policy in policies(tiny, 60)]
    seen, unseen = made[:40], made[40:]
    asked = [observation.policy for observation in unseen]
    wanted = np.array([observation.ratio for observation in unseen])
    before, unsure = LatencyModel.fit(features, []).predict(asked)
    after, sure = LatencyModel.fit(features, seen).predict(asked)
    assert np.abs(after - wanted).mean() < 0.2 * np.abs(before - wanted).mean()
    assert (sure < unsure).all()
    assert (np.abs(after - wanted) < 4 * sure).all()
