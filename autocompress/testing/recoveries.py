"""The contract of `Recovery`."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from autocompress.components import (
    CompressedLayer,
    QuantizedTensor,
    Recovery,
)
from autocompress.network.graph import Layer, LayerPair
from autocompress.testing.layers import make_stats
from autocompress.testing.round_trip import check_settings
from autocompress.testing.weights import Case, WeightContract, half_mask, random_tensor

FORMS = ("float", "masked", "codes", "one_scale", "masked_codes", "codebook", "blocks")
"""How a layer's weight may be stored."""

BLOCK = 4
"""Inputs that share a scale in the form `blocks`, which only matrices have."""


class RecoveryContract(WeightContract):
    """The promises of `Recovery` that hold for every candidate: those of `prepare` and `repair`."""

    @pytest.fixture
    def recovery(self) -> Recovery:
        """The component under test."""
        raise NotImplementedError("a subclass of RecoveryContract gives the fixture `recovery`")

    @pytest.fixture(params=FORMS)
    def stored(self, case: Case, request: pytest.FixtureRequest) -> CompressedLayer:
        """A compressed layer."""
        return _compressed(*case, request.param)

    def test_repair_keeps_shapes_codes_and_mask(self, recovery: Recovery, case: Case, stored: CompressedLayer) -> None:
        """Bytes stay as they are: only scale, bias and float values may move, and what was removed stays 0."""
        repaired = recovery.repair(stored, make_stats(*case), {})
        _check_repaired(stored, repaired, case[1])

    def test_repair_of_a_cut_layer(self, recovery: Recovery, case: Case) -> None:
        """Statistics are of the whole layer, the weight is what is left of it."""
        weight, layer = case
        kept = torch.arange(0, layer.channels, 2)
        cuts = {layer.channel_axis: kept}
        stats = make_stats(weight, layer)
        left = stats.cut(cuts)
        stored = _compressed(left.weight, left.layer, "codes")
        _check_repaired(stored, recovery.repair(stored, stats, cuts), left.layer)

    def test_repair_is_deterministic(self, recovery: Recovery, case: Case, stored: CompressedLayer) -> None:
        """Equal input gives equal tensors, whatever was drawn before; the global random state stays as it is."""
        first = recovery.repair(stored, make_stats(*case), {})
        torch.rand(1)
        state = torch.get_rng_state()
        again = copy.deepcopy(recovery).repair(stored, make_stats(*case), {})
        assert torch.equal(first.dense(), again.dense())
        assert (first.bias is None) == (again.bias is None)
        assert first.bias is None or again.bias is None or torch.equal(first.bias, again.bias)
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_repair_leaves_its_input_alone(self, recovery: Recovery, case: Case, stored: CompressedLayer) -> None:
        """Neither the compressed layer nor the FP32 weight is written to."""
        before, weight = copy.deepcopy(stored), case[0].clone()
        recovery.repair(stored, make_stats(*case), {})
        assert torch.equal(stored.dense(), before.dense())
        assert stored.bias is None or before.bias is None or torch.equal(stored.bias, before.bias)
        assert torch.equal(case[0], weight)

    def test_prepare_changes_no_output(self, recovery: Recovery) -> None:
        """The prepared module computes what the given one does, which itself stays as it is."""
        net, example = _pair_net(), random_tensor(4, 3, 8, 8)
        before = copy.deepcopy(net.state_dict())
        prepared = recovery.prepare(net, example, [LayerPair("0", "2", "Relu")])
        with torch.no_grad():
            torch.testing.assert_close(prepared(example), _pair_net()(example), rtol=1e-4, atol=1e-3)
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), f"prepare wrote to {name} of the module that it was given"

    def test_settings_survive_a_round_trip(self, recovery: Recovery) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(recovery)


def _check_repaired(stored: CompressedLayer, repaired: CompressedLayer, layer: Layer) -> None:
    assert repaired.dense().shape == stored.dense().shape
    assert repaired.dense().isfinite().all()
    assert repaired.bias is None or (repaired.bias.shape == (layer.channels,) and repaired.bias.isfinite().all())
    if isinstance(stored.weight, QuantizedTensor):
        assert isinstance(repaired.weight, QuantizedTensor), "codes became floats"
        assert torch.equal(repaired.weight.codes, stored.weight.codes), "codes changed"
        assert repaired.weight.bits == stored.weight.bits
        assert (repaired.weight.scale > 0).all(), f"scale: {repaired.weight.scale.tolist()}"
    assert (repaired.mask is None) == (stored.mask is None)
    if stored.mask is not None and repaired.mask is not None:
        assert torch.equal(repaired.mask, stored.mask)
        assert not repaired.dense()[~stored.mask].any(), "removed weights came back"


def _pair_net() -> nn.Sequential:
    """Two convolutions with a Relu between them, whose channels differ in size."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU())
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        net.get_parameter("0.weight").mul_(torch.tensor([100.0, 1.0, 0.01, 1.0, 3.0, 1.0]).reshape(-1, 1, 1, 1))
    return net.eval()


def _codes(weight: Tensor, layer: Layer, mask: Tensor | None = None) -> QuantizedTensor:
    """8-bit codes by plain rounding, with one scale for each output channel."""
    kept = weight if mask is None else weight * mask
    rows = kept.movedim(layer.channel_axis, 0).flatten(1)
    extreme = rows.abs().amax(1) if rows.shape[1] else torch.zeros(len(rows))
    scale = torch.where(extreme / 127 > 0, extreme / 127, 1.0)
    shape = [-1 if axis == layer.channel_axis else 1 for axis in range(weight.dim())]
    codes = (kept / scale.reshape(shape)).round().to(torch.int8)
    return QuantizedTensor(codes, scale, torch.zeros_like(scale, dtype=torch.int8), layer.channel_axis, 8)


def _compressed(weight: Tensor, layer: Layer, form: str) -> CompressedLayer:
    bias = random_tensor(layer.channels)
    mask = half_mask(weight) if form.startswith("masked") else None
    if form in {"float", "masked"}:
        return CompressedLayer(weight if mask is None else weight * mask, bias, mask)
    codes = _codes(weight, layer, mask)
    if form == "one_scale":
        scale = torch.tensor(float(codes.scale.max()) if len(codes.scale) else 1.0)
        codes = dataclasses.replace(codes, scale=scale, zero_point=torch.tensor(0, dtype=torch.int8))
    if form == "codebook":
        table = torch.tensor([-100, -20, 0, 20, 100], dtype=torch.int8)
        codes = dataclasses.replace(codes, codes=torch.zeros_like(codes.codes), bits=3, codebook=table).rounded(weight)
    if form == "blocks" and layer.kind == "linear":
        scale = codes.scale[:, None].repeat(1, -(-weight.shape[1 - layer.channel_axis] // BLOCK))
        codes = dataclasses.replace(codes, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int8), group_size=BLOCK)
    return CompressedLayer(codes, bias, mask)
