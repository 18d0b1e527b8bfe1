from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from autocompress_plugins.affine import Int4
from autocompress_plugins.moments import GAIN_LIMITS, match_moments
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress_plugins.sparse import Sparse
from torch import Tensor, nn
from torch.nn import functional

from autocompress import LayerStats, Pruner
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.errors import PolicyError
from autocompress.network.channels import ChannelGroups
from autocompress.network.graph import Layer
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase, file_cuts
from autocompress.tensors.sparsity import largest
from autocompress.tensors.stats import slice_axes
from autocompress.testing import make_layer, make_stats

if TYPE_CHECKING:
    from tests.conftest import Tiny

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT4 = LayerPolicy("int4", 4)
HALF = LayerPolicy(pruner="sparse", sparsity=0.5)
DECISIONS = {
    "int4": INT4,
    "half_sparse": HALF,
    "half_sparse_int4": LayerPolicy("int4", 4, "sparse", 0.5),
    "int8_pruned": LayerPolicy("int8", 8, "sparse", 0.3),
}
CUT = {"inner.0": ChannelPolicy("sparse", 0.5)}

# --- moment matching on the tiny network, against torch convolutions of what the layers see ---


@pytest.fixture(scope="module")
def exact(tiny: Tiny, exhaustive: Calibration, groups: ChannelGroups) -> LayerDatabase:
    """Compresses with statistics over all positions, so that moments match exactly."""
    return LayerDatabase(tiny.graph, exhaustive, tiny.components, groups.groups)


@pytest.fixture(scope="module")
def inputs(tiny: Tiny) -> Mapping[str, Tensor]:
    """What each layer of the FP32 model reads on calibration data, in float64."""
    seen: dict[str, Tensor] = {}
    handles = [
        tiny.task.model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name in LAYERS
    ]
    with torch.no_grad():
        tiny.task.model(torch.from_numpy(tiny.task.sets["calibration"].inputs))
    for handle in handles:
        handle.remove()
    return {name: values.double() for name, values in seen.items()}


def computed(layer: Layer, weight: Tensor, bias: Tensor, values: Tensor) -> Tensor:
    """The layer's output, (channels, n)."""
    if layer.kind == "linear":
        return functional.linear(values, weight.double(), bias.double()).T
    groups = weight.shape[0] if layer.kind == "depthwise" else 1
    stride, padding = layer.strides, layer.pads[:2]
    outputs = functional.conv2d(values, weight.double(), bias.double(), stride, padding, groups=groups)
    return outputs.transpose(0, 1).flatten(1)


def original(tiny: Tiny, layer: Layer) -> tuple[Tensor, Tensor]:
    weight, bias = tiny.graph.initializers[layer.weight], tiny.graph.initializers[str(layer.bias)]
    return torch.from_numpy(weight), torch.from_numpy(bias)


def assert_same_moments(found: Tensor, expected: Tensor) -> None:
    spread = expected.std(dim=1)
    torch.testing.assert_close(found.std(dim=1), spread, rtol=2e-3, atol=1e-6)
    assert ((found.mean(dim=1) - expected.mean(dim=1)).abs() < 2e-3 * spread + 1e-6).all()


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_keep_mean_and_spread(
    tiny: Tiny, exact: LayerDatabase, inputs: Mapping[str, Tensor], name: str, decision: str
) -> None:
    layer = tiny.graph.layers[name]
    compressed = exact.compress(Policy({name: DECISIONS[decision]})).layers[name]
    assert compressed.bias is not None
    expected = computed(layer, *original(tiny, layer), inputs[name])
    found = computed(layer, compressed.dense(), compressed.bias, inputs[name])
    assert not torch.allclose(found, expected, rtol=1e-3)
    assert_same_moments(found, expected)


def test_matching_repairs_what_rounding_broke(tiny: Tiny, exact: LayerDatabase, inputs: Mapping[str, Tensor]) -> None:
    layer = tiny.graph.layers["inner.0"]
    weight, bias = original(tiny, layer)
    mask = largest(weight.abs(), 0.5)
    expected, plain = (computed(layer, kept, bias, inputs["inner.0"]) for kept in (weight, weight * mask))
    with pytest.raises(AssertionError):
        assert_same_moments(plain, expected)


@pytest.mark.parametrize("decision", [LayerPolicy(), INT4])
def test_moments_match_after_input_channels_are_removed(
    tiny: Tiny, exact: LayerDatabase, inputs: Mapping[str, Tensor], decision: LayerPolicy
) -> None:
    layer = tiny.graph.layers["outer.0"]
    model = exact.compress(Policy({"outer.0": decision}, CUT))
    kept, compressed = model.kept["inner.0"], model.layers["outer.0"]
    assert kept.shape == (16,)
    assert compressed.dense().shape == (16, 16, 3, 3)
    assert compressed.bias is not None
    found = computed(layer, compressed.dense(), compressed.bias, inputs["outer.0"][:, kept])
    assert_same_moments(found, computed(layer, *original(tiny, layer), inputs["outer.0"]))


# --- what is left, before any repair ---


def unrepaired(tiny: Tiny, calibration: Calibration, groups: ChannelGroups, pruner: Pruner) -> LayerDatabase:
    components = replace(tiny.components, pruners={pruner.name: pruner}, recoveries=())
    return LayerDatabase(tiny.graph, calibration, components, groups.groups)


def test_readers_of_removed_channels_are_compensated(
    tiny: Tiny, exhaustive: Calibration, groups: ChannelGroups, inputs: Mapping[str, Tensor]
) -> None:
    """The layer's output on real inputs, without what the removed channels gave."""
    layer = tiny.graph.layers["outer.0"]
    expected = computed(layer, *original(tiny, layer), inputs["outer.0"])
    errors = {}
    for compensated in (False, True):
        database = unrepaired(tiny, exhaustive, groups, Sparse(compensate=compensated))
        model = database.compress(Policy(channels=CUT))
        kept, compressed = model.kept["inner.0"], model.layers["outer.0"]
        assert compressed.bias is not None
        found = computed(layer, compressed.dense(), compressed.bias, inputs["outer.0"][:, kept])
        errors[compensated] = float((found - expected).square().mean())
        giver = original(tiny, tiny.graph.layers["inner.0"])[0][kept]
        assert torch.equal(model.layers["inner.0"].dense(), giver), "layers that lose outputs only are not touched"
    assert errors[True] < 0.75 * errors[False]


def test_channels_and_weights_can_both_be_removed(tiny: Tiny, exhaustive: Calibration, groups: ChannelGroups) -> None:
    policy = Policy({"outer.0": LayerPolicy(pruner="sparse", structure="2:4")}, CUT)
    model = unrepaired(tiny, exhaustive, groups, Sparse()).compress(policy)
    dense = model.layers["outer.0"].dense()
    assert dense.shape == (16, 16, 3, 3)
    assert ((dense != 0).reshape(16, 4, 4, 9).sum(2) == 2).all()


def test_threshold_decides_by_score(tiny: Tiny, exhaustive: Calibration, groups: ChannelGroups) -> None:
    database = unrepaired(tiny, exhaustive, groups, Sparse(compensate=False))
    layer = tiny.graph.layers["pointwise"]
    weight, _ = original(tiny, layer)
    model = database.compress(Policy({"pointwise": LayerPolicy(pruner="sparse", threshold=0.05)}))
    assert torch.equal(model.layers["pointwise"].dense(), torch.where(weight.abs() <= 0.05, 0.0, weight))
    score = database.group_score("sparse", "inner.0")
    limit = float(score.sort().values[10])
    kept = database.compress(Policy(channels={"inner.0": ChannelPolicy("sparse", threshold=limit)})).kept["inner.0"]
    assert len(kept) == 24  # 21 are above it; in steps of 8 that is 24, and the next best fill them up
    assert set(kept.tolist()) >= set((score > limit).nonzero().flatten().tolist())
    assert score.mean() == pytest.approx(1, abs=1e-5)


@dataclass
class Counting(Sparse):
    """Counts what it is asked."""

    asked: list[str] = field(default_factory=list)

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        self.asked.append(stats.layer.name)
        return super().score(weight, stats)


def test_each_score_is_computed_once(tiny: Tiny, exhaustive: Calibration, groups: ChannelGroups) -> None:
    pruner = Counting()
    database = unrepaired(tiny, exhaustive, groups, pruner)
    for share in (0.2, 0.4, 0.6):
        database.compress(
            Policy({"head": LayerPolicy(pruner="sparse", sparsity=share)}, {"inner.0": ChannelPolicy("sparse", share)})
        )
    assert sorted(pruner.asked) == ["head", "inner.0", "outer.0"]


def test_removing_output_channels_changes_no_other(tiny: Tiny, exact: LayerDatabase) -> None:
    model = exact.compress(Policy(channels=CUT))
    weight, bias = original(tiny, tiny.graph.layers["inner.0"])
    compressed, kept = model.layers["inner.0"], model.kept["inner.0"]
    assert compressed.bias is not None
    torch.testing.assert_close(compressed.dense(), weight[kept])
    torch.testing.assert_close(compressed.bias, bias[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_matching_leaves_the_codes_alone(tiny: Tiny, exact: LayerDatabase, exhaustive: Calibration, name: str) -> None:
    decision = DECISIONS["half_sparse_int4"]
    compressed = exact.compress(Policy({name: decision})).layers[name]
    weight, _ = original(tiny, tiny.graph.layers[name])
    mask = largest(weight.abs(), 0.5)
    stats = exhaustive.stats(tiny.graph.layers[name])
    left = tiny.components.pruners["sparse"].update(weight, mask, stats)
    rounded = tiny.components.quantizers["int4"].quantize(left, 4, stats, mask)
    assert isinstance(compressed.weight, QuantizedTensor)
    assert torch.equal(compressed.weight.codes, rounded.codes)
    assert not torch.equal(compressed.weight.scale, rounded.scale)
    assert (compressed.weight.zero_point == 0).all()
    assert compressed.weight.zero_point.shape == compressed.weight.scale.shape


@pytest.mark.parametrize("decision", [HALF, DECISIONS["half_sparse_int4"]])
def test_pruned_weights_are_exactly_zero_and_exactly_as_many(tiny: Tiny, exact: LayerDatabase, decision: LayerPolicy) -> None:
    for name, compressed in exact.compress(Policy(dict.fromkeys(LAYERS, decision))).layers.items():
        assert compressed.mask is not None
        assert int((~compressed.mask).sum()) == tiny.graph.layers[name].parameters // 2
        assert not compressed.dense()[~compressed.mask].any()


# --- moment matching in closed form: with whitened inputs, a channel's spread is the norm of its weights ---


def matched(weight: Tensor, compressed: CompressedLayer, kind: str = "linear") -> CompressedLayer:
    layer = make_layer(tuple(weight.shape), kind)
    return match_moments(compressed, make_stats(weight, layer), {})


def test_gain_is_the_ratio_of_norms_within_limits() -> None:
    weight = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    smaller = weight * torch.tensor([[0.8], [1.25], [0.1], [10.0]])
    found = matched(weight, CompressedLayer(smaller, torch.zeros(4))).dense()
    low, high = GAIN_LIMITS
    torch.testing.assert_close(found, torch.stack([weight[0], weight[1], smaller[2] * high, smaller[3] * low]))


def test_an_empty_channel_stays_empty() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    found = matched(weight, CompressedLayer(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0])))
    assert torch.equal(found.dense(), torch.zeros(2, 2))
    assert found.bias is not None
    assert found.bias.tolist() == [1.0, 2.0]


def test_a_convolution_gets_a_bias_and_a_matrix_product_has_no_place_for_one() -> None:
    weight = torch.ones(2, 3, 1, 1)
    conv = matched(weight, CompressedLayer(weight, None), "conv2d")
    assert conv.bias is not None
    assert conv.bias.shape == (2,)
    assert matched(torch.ones(2, 3), CompressedLayer(torch.ones(2, 3), None)).bias is None


def test_a_scale_of_the_whole_weight_becomes_one_for_each_channel() -> None:
    codes = torch.tensor([[30, 40], [3, 4]], dtype=torch.int8)
    shared = QuantizedTensor(codes, torch.tensor(0.1), torch.tensor(0, dtype=torch.int8), 0, 8)
    found = matched(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), CompressedLayer(shared, torch.zeros(2))).weight
    assert isinstance(found, QuantizedTensor)
    torch.testing.assert_close(found.scale, torch.tensor([0.1, 0.2]))
    assert found.zero_point.tolist() == [0, 0]
    torch.testing.assert_close(found.dequantize(), torch.tensor([[3.0, 4.0], [0.6, 0.8]]))


# --- masks ---


@pytest.mark.parametrize("shape", [(1,), (7,), (16, 1, 3, 3), (10, 32)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
def test_largest_removes_exactly_the_share_also_with_ties(shape: tuple[int, ...], sparsity: float) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for score in (scores, scores.round(), torch.zeros(shape)):
        mask = largest(score, sparsity)
        assert mask.dtype == torch.bool
        assert mask.shape == shape
        assert int((~mask).sum()) == round(sparsity * math.prod(shape))
        if mask.any() and not mask.all():
            assert score[mask].min() >= score[~mask].max()


def test_slices_along_several_axes() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    found = slice_axes(tensor, {0: torch.tensor([1]), 2: torch.tensor([0, 3])})
    np.testing.assert_array_equal(found.numpy(), tensor.numpy()[1:2][:, :, [0, 3]])


def test_cuts_name_the_axes_of_the_files_weights(tiny: Tiny, groups: ChannelGroups) -> None:
    kept = {"inner.0": torch.tensor([1, 5, 30]), "pointwise": torch.tensor([0, 2])}
    cuts = file_cuts(tiny.graph, groups.groups, kept)
    plain = {name: {axis: indices.tolist() for axis, indices in found.items()} for name, found in cuts.items()}
    assert plain == {
        "inner.0": {0: [1, 5, 30]},
        "outer.0": {1: [1, 5, 30]},
        "pointwise": {0: [0, 2]},
        "head": {1: [0, 2]},
    }


# --- the database ---


def test_each_decision_is_compressed_once(database: LayerDatabase) -> None:
    first = database.compress(Policy({"inner.0": INT4, "outer.0": INT4}))
    second = database.compress(Policy({"inner.0": INT4, "outer.0": HALF}))
    assert second.layers["inner.0"] is first.layers["inner.0"]
    assert second.layers["outer.0"] is not first.layers["outer.0"]
    cut = database.compress(Policy({"inner.0": INT4}, CUT))
    assert cut.layers["inner.0"] is not first.layers["inner.0"]
    assert database.compress(Policy({"inner.0": INT4}, CUT)).layers["outer.0"] is cut.layers["outer.0"]


def test_a_fresh_database_gives_the_same_tensors(tiny: Tiny, database: LayerDatabase, groups: ChannelGroups) -> None:
    policy = Policy(dict.fromkeys(LAYERS, LayerPolicy("int8", 8, "importance", 0.3)), CUT)
    again = LayerDatabase(tiny.graph, tiny.calibration, tiny.components, groups.groups).compress(policy)
    for name, layer in database.compress(policy).layers.items():
        assert torch.equal(layer.dense(), again.layers[name].dense())
        assert layer.bias is not None
        assert again.layers[name].bias is not None
        assert torch.equal(layer.bias, again.layers[name].bias)  # type: ignore[arg-type]


def test_only_what_the_policy_touches_is_stored(tiny: Tiny, database: LayerDatabase) -> None:
    assert database.compress(Policy()) == database.compress(Policy({"head": LayerPolicy()}))
    assert not database.compress(Policy()).layers
    model = database.compress(Policy({"inner.0": INT4}))
    inner = tiny.graph.layers["inner.0"]
    assert list(model.layers) == ["inner.0"]
    assert model.ranges == {name: tiny.calibration.ranges[name] for name in (inner.input, inner.output)}
    assert set(database.compress(Policy(channels=CUT)).layers) == {"inner.0", "outer.0"}


def test_channels_with_the_highest_scores_stay(tiny: Tiny, database: LayerDatabase) -> None:
    inner, outer = (np.abs(tiny.graph.initializers[f"{name}.weight"]) for name in ("inner.0", "outer.0"))
    score = inner.mean(axis=(1, 2, 3)) / inner.mean() + outer.mean(axis=(0, 2, 3)) / outer.mean()
    kept = database.compress(Policy(channels=CUT)).kept["inner.0"]
    assert kept.tolist() == sorted(np.argsort(-score)[:16].tolist())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy({"nowhere": INT4}), r"the layer 'nowhere'; expected one of: stem\.0, inner\.0"),
        (
            Policy(channels={"stem.0": ChannelPolicy("sparse", 0.5)}),
            r"the channel group 'stem\.0'; expected one of: pointwise, ",
        ),
        (Policy({"head": LayerPolicy("int5", 5)}), "the quantizer 'int5'; expected one of: int8, int4"),
        (Policy({"head": LayerPolicy(pruner="random", sparsity=0.5)}), "the pruner 'random'; expected one of: sparse, "),
        (Policy(channels={"inner.0": ChannelPolicy("random", 0.5)}), "the pruner 'random'; expected one of: sparse, "),
        (Policy({"head": LayerPolicy(sparsity=0.5)}), "the pruner 'None'; expected one of: sparse, "),
    ],
)
def test_a_policy_for_another_model_or_configuration_is_refused(database: LayerDatabase, policy: Policy, message: str) -> None:
    with pytest.raises(PolicyError, match=f"^policy names {message}"):
        database.compress(policy)


def test_dense_is_what_the_file_computes_with() -> None:
    weight = nn.Linear(3, 2).weight.detach()
    assert CompressedLayer(weight, None).dense() is weight
    quantized = QuantizedTensor(
        torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([0.5]), torch.tensor([1], dtype=torch.int8), 0, 8
    )
    assert CompressedLayer(quantized, None).dense().tolist() == [[0.0, -1.5]]


class Whole(OnnxRuntime):
    """A target without kernels for blocks of inputs."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), group_sizes=frozenset())


def test_blocks_that_the_target_cannot_compute_are_refused(tiny: Tiny) -> None:
    policy = Policy({"head": LayerPolicy("int4", 4, activation="float")})
    for target, able in ((OnnxRuntime(), True), (Whole(), False)):
        components = replace(tiny.components, target=target, quantizers={"int4": Int4(group_size=16)})
        database = LayerDatabase(tiny.graph, tiny.calibration, components, {})
        if able:
            weight = database.compress(policy).layers["head"].weight
            assert isinstance(weight, QuantizedTensor)
            assert weight.scale.shape == (10, 2)
        else:
            with pytest.raises(
                PolicyError, match=r"layer head: quantizer 'int4' gives blocks .* for no layer only, not for linear"
            ):
                database.compress(policy)
