"""What every component promises, as tests: subclass a contract, give one fixture, and run pytest.

::

    from autocompress.testing import QuantizerContract

    class TestPowerOfTwo(QuantizerContract):
        @pytest.fixture
        def quantizer(self):
            return PowerOfTwo()

The bundled components are held to the same contracts. `make_layer` and `make_stats` serve tests of a component's own numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import onnx
import pluggy
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn

from autocompress import hookspecs
from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.components import (
    CompressedLayer,
    Metric,
    Observer,
    Pruner,
    QuantizedTensor,
    Quantizer,
    Recovery,
    Sampler,
    Target,
    Tracker,
)
from autocompress.graph import OPSET, Layer, LayerPair
from autocompress.notify import Notifier, TrackerWarning
from autocompress.policy import Activation, LayerPolicy, Policy
from autocompress.record import Final, Gate, LayerRow, Objective, SearchResult, State, Status, StudyContext, TrialRecord
from autocompress.runner import load_module
from autocompress.sparsity import share_removed, weight_mask
from autocompress.stats import LayerStats
from autocompress.synthetic import SyntheticProblem

Array = NDArray[Any]

GRADIENT_SAMPLES, GRADIENT_EXAMPLES = 8, 32


def make_layer(shape: tuple[int, ...], kind: str = "conv2d", channel_axis: int = 0) -> Layer:
    """A layer with a weight of the given shape; depthwise has one group for each channel, every other kind one in all."""
    space = shape[2:]
    return Layer(
        name="layer",
        kind=kind,
        node="node",
        weight="layer.weight",
        bias=None,
        shape=shape,
        channel_axis=channel_axis,
        groups=shape[0] if kind == "depthwise" else 1,
        macs=math.prod(shape),
        input="input",
        output="output",
        strides=(1,) * len(space),
        dilations=(1,) * len(space),
        pads=(0,) * 2 * len(space),
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The given gradients, and statistics of the given inputs (groups, n, d); else of whitened ones (mean 0, covariance I)."""

    gradients: Tensor
    inputs: Tensor | None = None

    def gradient_samples(self, layer: Layer) -> Tensor:
        return self.gradients

    def gradient_examples(self) -> int:
        return GRADIENT_EXAMPLES

    def input_mean(self, layer: Layer) -> Tensor:
        return torch.zeros(layer.groups, _inputs(layer)) if self.inputs is None else self.inputs.mean(1)

    def input_second_moment(self, layer: Layer) -> Tensor:
        if self.inputs is None:
            return torch.eye(_inputs(layer)).repeat(layer.groups, 1, 1)
        return self.inputs.transpose(1, 2) @ self.inputs / self.inputs.shape[1]

    def input_shrinkage(self, layer: Layer) -> Tensor:
        return torch.zeros(layer.groups)


def _inputs(layer: Layer) -> int:
    """Inputs of one output."""
    return math.prod(size for axis, size in enumerate(layer.shape) if axis != layer.channel_axis)


def make_stats(
    weight: Tensor, layer: Layer, gradient_samples: Tensor | None = None, inputs: Tensor | None = None
) -> LayerStats:
    """Statistics of a layer for a test.

    Args:
        gradient_samples: shape (R, *weight.shape); drawn from a fixed seed when they are not given.
        inputs: input patches, shape (groups, n, d); whitened ones when they are not given.
    """
    if gradient_samples is None:
        random = torch.Generator().manual_seed(1)
        gradient_samples = torch.randn(GRADIENT_SAMPLES, *weight.shape, generator=random)
    return LayerStats(layer, weight, _Source(gradient_samples, inputs))


def check_settings(component: Any) -> None:
    """The fields are a valid Hydra configuration, and the component comes back equal from JSON."""
    settings = json.loads(json.dumps(dataclasses.asdict(component), default=lambda member: member.name))
    config = OmegaConf.merge(OmegaConf.structured(type(component)), settings)
    assert OmegaConf.to_object(config) == component, f"settings {settings} do not give the same component back"


_Case = tuple[Tensor, Layer]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _scaled_channels(*factors: float) -> Tensor:
    """One channel for each factor."""
    return _random(len(factors), 16) * torch.tensor(factors)[:, None]


def _cases() -> dict[str, _Case]:
    """Weights that real models contain, and those that break a formula."""
    weights = {
        "zeros": torch.zeros(4, 3),
        "positive_constant": torch.full((4, 3), 0.3),
        "negative_constant": torch.full((4, 3), -0.3),
        "zero_channel": _scaled_channels(1.0, 0.0, 0.5),
        "uneven_channels": _scaled_channels(1000.0, 1.0, 1e-30, 1e-3),
        "all_positive": _random(5, 7).abs() + 0.1,
        "minute": _random(4, 3) * 1e-40,
        "single_channel": _random(1, 9),
        "one_element": _random(1, 1),
        "no_channels": torch.zeros(0, 4),
    }
    linear = {name: (weight, make_layer(tuple(weight.shape), "linear")) for name, weight in weights.items()}
    return linear | {
        "conv2d": (_random(8, 4, 3, 3), make_layer((8, 4, 3, 3))),
        "conv1d": (_random(6, 4, 5), make_layer((6, 4, 5), "conv1d")),
        "depthwise": (_random(6, 1, 3, 3), make_layer((6, 1, 3, 3), "depthwise")),
        "linear": (_random(5, 7), make_layer((5, 7), "linear")),
        "linear_channels_last": (_random(5, 7).t(), make_layer((7, 5), "linear", channel_axis=1)),  # not contiguous
    }


CASES = _cases()


class _WeightContract:
    """Gives each test every weight of `CASES`, as copies."""

    @pytest.fixture(params=CASES)
    def case(self, request: pytest.FixtureRequest) -> _Case:
        """Weight and layer."""
        weight, layer = CASES[request.param]
        return weight.clone(), layer


def _half(weight: Tensor) -> Tensor:
    """A mask that removes about half of the weights."""
    return _random(*weight.shape) > 0


def _along_axis(values: Tensor, quantized: QuantizedTensor) -> Tensor:
    """Scale or zero point, shaped so that it broadcasts over the codes."""
    if quantized.group_size is not None:
        wide = values[:, torch.arange(quantized.codes.shape[1 - quantized.axis]) // quantized.group_size]
        return wide if quantized.axis == 0 else wide.T
    return values.reshape([-1 if values.dim() and axis == quantized.axis else 1 for axis in range(quantized.codes.dim())])


class QuantizerContract(_WeightContract):
    """The promises of `Quantizer`, on every kind of weight and at every bit-width that it offers."""

    max_steps: ClassVar[float | None] = 1.0
    """Most that an unclipped weight may move, in scales; None for a quantizer that moves weights to compensate others."""

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        """The component under test."""
        raise NotImplementedError("a subclass of QuantizerContract gives the fixture `quantizer`")

    def test_offers_valid_bit_widths(self, quantizer: Quantizer, case: _Case) -> None:
        """No width twice, each from 2 to 8."""
        offered = list(quantizer.bit_widths(case[1]))
        assert len(offered) == len(set(offered))
        assert all(isinstance(bits, int) and 2 <= bits <= 8 for bits in offered), f"bit_widths: {offered}"

    def test_codes_fit_the_bits(self, quantizer: Quantizer, case: _Case) -> None:
        """The codes are int8, of the weight's shape, within the signed range, or each the index of a level of the codebook."""
        for quantized in _quantized(quantizer, case):
            assert quantized.codes.dtype == torch.int8
            assert quantized.codes.shape == case[0].shape
            if quantized.codebook is None:
                _check_signed_range(quantized.codes, quantized.bits)
            else:
                assert not quantized.codes.numel() or quantized.codes.min() >= 0
                assert not quantized.codes.numel() or quantized.codes.max() < len(quantized.codebook)

    def test_says_whether_blocks_have_scales(self, quantizer: Quantizer, case: _Case) -> None:
        """`blocks` is true exactly where what is given has a `group_size`: placement relies on it."""
        for quantized in _quantized(quantizer, case):
            assert quantizer.blocks(case[1]) == (quantized.group_size is not None)

    def test_codebook_is_legal(self, quantizer: Quantizer, case: _Case) -> None:
        """The levels are int8, ascending, no more than the bits can name, and one is 0; the zero point is 0 then."""
        for quantized in _quantized(quantizer, case):
            if quantized.codebook is not None:
                assert quantized.codebook.dtype == torch.int8
                assert 1 <= len(quantized.codebook) <= 2**quantized.bits
                assert (quantized.codebook.int().diff() > 0).all(), f"codebook: {quantized.codebook.tolist()}"
                assert (quantized.codebook == 0).any(), f"codebook: {quantized.codebook.tolist()}"
                assert not quantized.zero_point.any()

    def test_scale_is_positive_and_finite(self, quantizer: Quantizer, case: _Case) -> None:
        """The scale is float32, one for each channel, one for each block of a channel's inputs, or one in all."""
        weight, layer = case
        for quantized in _quantized(quantizer, case):
            assert quantized.scale.dtype == torch.float32
            if quantized.group_size is None:
                assert quantized.scale.shape in {(), (layer.channels,)}
            else:
                assert weight.dim() == 2
                blocks = math.ceil(weight.shape[1 - layer.channel_axis] / quantized.group_size)
                assert quantized.scale.shape == (layer.channels, blocks)
            assert quantized.scale.isfinite().all()
            assert (quantized.scale > 0).all(), f"scale: {quantized.scale.tolist()}"
            assert not quantized.scale.dim() or quantized.axis == layer.channel_axis

    def test_zero_point_fits_the_bits(self, quantizer: Quantizer, case: _Case) -> None:
        """The zero point is int8, of the scale's shape, within the signed range."""
        for quantized in _quantized(quantizer, case):
            assert quantized.zero_point.dtype == torch.int8
            assert quantized.zero_point.shape == quantized.scale.shape
            _check_signed_range(quantized.zero_point, quantized.bits)

    def test_error_is_bounded_by_the_scale(self, quantizer: Quantizer, case: _Case) -> None:
        """No weight within the representable range moves by more than `max_steps` scales, or farther than the nearest level."""
        for quantized in _quantized(quantizer, case):
            assert quantized.dequantize().isfinite().all()
            if self.max_steps is not None:
                assert (_steps_moved(case[0], quantized) <= self.max_steps * (1 + 1e-5)).all()

    def test_more_bits_lose_no_more(self, quantizer: Quantizer, case: _Case) -> None:
        """Of several widths on offer with a codebook, and of those without, the wider has no larger squared error.

        Up to a quarter: where a range is cut, its few clipped weights decide, and they may lie closer to a coarser grid.
        """
        for learned in (False, True):
            found = [quantized for quantized in _quantized(quantizer, case) if (quantized.codebook is not None) == learned]
            found.sort(key=lambda quantized: quantized.bits)
            errors = [float((quantized.dequantize().double() - case[0]).square().sum()) for quantized in found]
            for narrow, wide in pairwise(errors):
                assert wide <= 1.25 * narrow + 1e-12 * float(case[0].double().square().sum())

    def test_masked_entries_are_exactly_zero(self, quantizer: Quantizer, case: _Case) -> None:
        """Where the mask is False, codes decode to 0 and to nothing near it."""
        for mask in (_half(case[0]), torch.zeros(case[0].shape, dtype=torch.bool)):
            for quantized in _quantized(quantizer, case, mask):
                assert not quantized.dequantize()[~mask].any()
                assert (quantized.scale > 0).all(), f"scale: {quantized.scale.tolist()}"

    def test_full_mask_changes_nothing(self, quantizer: Quantizer, case: _Case) -> None:
        """A mask that keeps all is the same as none."""
        _check_equal(_quantized(quantizer, case), _quantized(quantizer, case, torch.ones(case[0].shape, dtype=torch.bool)))

    def test_is_deterministic(self, quantizer: Quantizer, case: _Case) -> None:
        """Equal input gives equal codes, whatever was drawn before; the global random state stays as it is."""
        first = _quantized(quantizer, case)
        torch.rand(1)
        state = torch.get_rng_state()
        _check_equal(first, _quantized(copy.deepcopy(quantizer), case))
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_leaves_its_input_alone(self, quantizer: Quantizer, case: _Case) -> None:
        """Weight and mask are not written to."""
        mask = _half(case[0])
        weight_before, mask_before = case[0].clone(), mask.clone()
        _quantized(quantizer, case, mask)
        assert torch.equal(case[0], weight_before)
        assert torch.equal(mask, mask_before)

    def test_settings_survive_a_round_trip(self, quantizer: Quantizer) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(quantizer)


def _quantized(quantizer: Quantizer, case: _Case, mask: Tensor | None = None) -> list[QuantizedTensor]:
    """The weight at every bit-width offered for its layer."""
    weight, layer = case
    stats = make_stats(weight, layer)
    found = [quantizer.quantize(weight, bits, stats, mask) for bits in quantizer.bit_widths(layer)]
    assert [quantized.bits for quantized in found] == list(quantizer.bit_widths(layer))
    return found


def _check_signed_range(codes: Tensor, bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert ((codes >= low) & (codes <= high)).all(), f"outside [{low}, {high}] at {bits} bits"


def _check_equal(first: list[QuantizedTensor], second: list[QuantizedTensor]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.zero_point, other.zero_point)
        assert one.group_size == other.group_size
        assert (one.codebook is None) == (other.codebook is None)
        assert one.codebook is None or other.codebook is None or torch.equal(one.codebook, other.codebook)


def _steps_moved(weight: Tensor, quantized: QuantizedTensor) -> Tensor:
    """Distance of each decoded value from the weight clipped to what the grid can represent, in scales.

    With a codebook, from the nearest value that it has.
    """
    scale = _along_axis(quantized.scale, quantized)
    if quantized.codebook is not None:
        values = quantized.codebook.double() * scale[..., None].double()  # (..., levels)
        distances = (values - weight.double()[..., None]).abs()
        nearest = values.expand(distances.shape).gather(-1, distances.argmin(-1, keepdim=True))[..., 0]
        return (quantized.dequantize().double() - nearest).abs() / scale
    zero_point = _along_axis(quantized.zero_point.float(), quantized)
    low, high = -(2 ** (quantized.bits - 1)) - zero_point, 2 ** (quantized.bits - 1) - 1 - zero_point
    clipped = weight.double().minimum(high.double() * scale).maximum(low.double() * scale)
    return (quantized.dequantize().double() - clipped).abs() / scale


class PrunerContract(_WeightContract):
    """The promises of `Pruner`, on every kind of weight."""

    @pytest.fixture
    def pruner(self) -> Pruner:
        """The component under test."""
        raise NotImplementedError("a subclass of PrunerContract gives the fixture `pruner`")

    def test_scores_every_weight(self, pruner: Pruner, case: _Case) -> None:
        """One finite float32 score for each weight."""
        score = pruner.score(case[0], make_stats(*case))
        assert score.shape == case[0].shape
        assert score.dtype == torch.float32
        assert score.isfinite().all()

    @pytest.mark.parametrize("samples", [1, 2])
    def test_scores_without_gradients(self, pruner: Pruner, case: _Case, samples: int) -> None:
        """Scores stay finite where the loss does not depend on the layer, and with few samples."""
        weight, layer = case
        stats = make_stats(weight, layer, torch.zeros(samples, *weight.shape))
        assert pruner.score(weight, stats).isfinite().all()

    def test_scores_every_channel(self, pruner: Pruner, case: _Case) -> None:
        """One finite score for each slice along either axis, the same whenever it is asked for."""
        for axis in (0, 1) if case[0].numel() else ():
            score = pruner.channel_score(case[0], make_stats(*case), axis)
            assert score.shape == (case[0].shape[axis],)
            assert score.dtype == torch.float32
            assert score.isfinite().all()
            assert torch.equal(score, copy.deepcopy(pruner).channel_score(case[0], make_stats(*case), axis))

    @pytest.mark.parametrize("structure", ["unstructured", "2:4"])
    def test_reaches_the_sparsity(self, pruner: Pruner, case: _Case, structure: str) -> None:
        """What is removed is what was asked for, to one weight, however many scores are equal."""
        stats, layer = make_stats(*case), case[1]
        policy = LayerPolicy(pruner=pruner.name, sparsity=0.4, structure=structure)
        mask = weight_mask(pruner.score(case[0], stats), layer, policy)
        share = 0.4 if structure == "unstructured" else share_removed(layer, structure)
        assert not mask.numel() or int((~mask).sum()) == round(share * mask.numel())
        assert not pruner.update(case[0], mask, stats)[~mask].any()

    def test_update_keeps_removed_weights_at_zero(self, pruner: Pruner, case: _Case) -> None:
        """What is left has the weight's shape and is exactly 0 where the mask is False."""
        for mask in (_half(case[0]), torch.zeros(case[0].shape, dtype=torch.bool)):
            updated = pruner.update(case[0], mask, make_stats(*case))
            assert updated.shape == case[0].shape
            assert updated.isfinite().all()
            assert not updated[~mask].any()

    def test_is_deterministic(self, pruner: Pruner, case: _Case) -> None:
        """Equal input gives equal scores, whatever was drawn before; the global random state stays as it is."""
        first = pruner.score(case[0], make_stats(*case))
        torch.rand(1)
        state = torch.get_rng_state()
        assert torch.equal(first, copy.deepcopy(pruner).score(case[0], make_stats(*case)))
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_leaves_its_input_alone(self, pruner: Pruner, case: _Case) -> None:
        """Weight and mask are not written to."""
        mask, stats = _half(case[0]), make_stats(*case)
        weight_before, mask_before = case[0].clone(), mask.clone()
        pruner.score(case[0], stats)
        pruner.update(case[0], mask, stats)
        assert torch.equal(case[0], weight_before)
        assert torch.equal(mask, mask_before)

    def test_settings_survive_a_round_trip(self, pruner: Pruner) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(pruner)


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


FORMS = ("float", "masked", "codes", "one_scale", "masked_codes", "codebook", "blocks")
"""How a layer's weight may be stored."""

BLOCK = 4
"""Inputs that share a scale in the form `blocks`, which only matrices have."""


def _compressed(weight: Tensor, layer: Layer, form: str) -> CompressedLayer:
    bias = _random(layer.channels)
    mask = _half(weight) if form.startswith("masked") else None
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


class RecoveryContract(_WeightContract):
    """The promises of `Recovery` that hold for every candidate: those of `prepare` and `repair`."""

    @pytest.fixture
    def recovery(self) -> Recovery:
        """The component under test."""
        raise NotImplementedError("a subclass of RecoveryContract gives the fixture `recovery`")

    @pytest.fixture(params=FORMS)
    def stored(self, case: _Case, request: pytest.FixtureRequest) -> CompressedLayer:
        """A compressed layer."""
        return _compressed(*case, request.param)

    def test_repair_keeps_shapes_codes_and_mask(self, recovery: Recovery, case: _Case, stored: CompressedLayer) -> None:
        """Bytes stay as they are: only scale, bias and float values may move, and what was removed stays 0."""
        repaired = recovery.repair(stored, make_stats(*case), {})
        _check_repaired(stored, repaired, case[1])

    def test_repair_of_a_cut_layer(self, recovery: Recovery, case: _Case) -> None:
        """Statistics are of the whole layer, the weight is what is left of it."""
        weight, layer = case
        kept = torch.arange(0, layer.channels, 2)
        cuts = {layer.channel_axis: kept}
        stats = make_stats(weight, layer)
        left = stats.cut(cuts)
        stored = _compressed(left.weight, left.layer, "codes")
        _check_repaired(stored, recovery.repair(stored, stats, cuts), left.layer)

    def test_repair_is_deterministic(self, recovery: Recovery, case: _Case, stored: CompressedLayer) -> None:
        """Equal input gives equal tensors, whatever was drawn before; the global random state stays as it is."""
        first = recovery.repair(stored, make_stats(*case), {})
        torch.rand(1)
        state = torch.get_rng_state()
        again = copy.deepcopy(recovery).repair(stored, make_stats(*case), {})
        assert torch.equal(first.dense(), again.dense())
        assert (first.bias is None) == (again.bias is None)
        assert first.bias is None or again.bias is None or torch.equal(first.bias, again.bias)
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_repair_leaves_its_input_alone(self, recovery: Recovery, case: _Case, stored: CompressedLayer) -> None:
        """Neither the compressed layer nor the FP32 weight is written to."""
        before, weight = copy.deepcopy(stored), case[0].clone()
        recovery.repair(stored, make_stats(*case), {})
        assert torch.equal(stored.dense(), before.dense())
        assert stored.bias is None or before.bias is None or torch.equal(stored.bias, before.bias)
        assert torch.equal(case[0], weight)

    def test_prepare_changes_no_output(self, recovery: Recovery) -> None:
        """The prepared module computes what the given one does, which itself stays as it is."""
        net, example = _pair_net(), _random(4, 3, 8, 8)
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


def _normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


BATCHES: dict[str, list[NDArray[np.float32]]] = {
    "signed": [_normal(4, 3, 5, 5)],
    "after_relu": [np.maximum(_normal(4, 100), 0)],
    "negative": [-np.abs(_normal(4, 100))],
    "growing": [_normal(4, 100, seed=seed) * 10**seed for seed in range(4)],
    "outlier": [np.append(_normal(400), np.float32(1e4))],
    "constant": [np.full((2, 3), 0.3, np.float32)],
    "zeros": [np.zeros((2, 3), np.float32)],
    "one_value": [np.full((1,), -2.5, np.float32)],
    "minute": [_normal(400) * np.float32(1e-40)],
}
"""Calibration batches of one activation tensor."""


class ObserverContract:
    """The promises of `Observer`, on every kind of activation."""

    @pytest.fixture
    def observer(self) -> Observer:
        """The component under test, which has seen nothing."""
        raise NotImplementedError("a subclass of ObserverContract gives the fixture `observer`")

    @pytest.fixture(params=BATCHES)
    def batches(self, request: pytest.FixtureRequest) -> list[NDArray[np.float32]]:
        """Calibration batches, as copies."""
        return [batch.copy() for batch in BATCHES[request.param]]

    def test_range_is_ordered_and_finite(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Low is at most high, for every number of bits."""
        for bits in (2, 4, 8, 16):
            low, high = _range(observer, batches, bits)
            assert math.isfinite(low)
            assert math.isfinite(high)
            assert low <= high

    @pytest.mark.parametrize("bits", [8, 16])
    def test_range_covers_most_values(self, observer: Observer, batches: list[NDArray[np.float32]], bits: int) -> None:
        """Nine values of ten lie in the range, widened to include 0, or within one step of it."""
        low, high = _range(observer, batches, bits)
        values = np.concatenate([batch.ravel() for batch in batches])
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / (2**bits - 1)
        assert np.mean((values >= low - step) & (values <= high + step)) >= 0.9

    def test_joined_ranges_are_of_the_same_tensors(self, observer: Observer) -> None:
        """Every tensor keeps a range, ordered and finite, and what was found for each is not written to."""
        found = {name: _range(observer, [batch.copy() for batch in BATCHES[name]], 8) for name in BATCHES}
        given = dict(found)
        joined = observer.joined(given)
        assert given == found
        assert list(joined) == list(found)
        assert all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in joined.values())
        assert not observer.joined({})

    def test_is_finite_before_any_batch(self, observer: Observer) -> None:
        """A tensor that calibration never reached has a range."""
        assert all(math.isfinite(end) for end in observer.range(8))

    def test_asking_changes_nothing(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Neither the answer nor what later batches do to it depends on how often the range was asked for."""
        expected = _range(observer, batches, 8)
        asked = _fresh(observer)
        for batch in batches:
            asked.update(batch)
            asked.range(4)
        assert asked.range(8) == asked.range(8) == expected

    def test_copies_are_independent(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """`dataclasses.replace` forgets what was seen, `copy.deepcopy` keeps it, and neither shares it."""
        before = observer.range(8)
        seen = _fresh(observer)
        for batch in batches:
            seen.update(batch)
        assert copy.deepcopy(seen).range(8) == seen.range(8)
        copy.deepcopy(seen).update(np.full(1000, 1e6, np.float32))
        assert seen.range(8) == _range(observer, batches, 8)
        assert _fresh(seen).range(8) == observer.range(8) == before

    def test_memory_layout_does_not_matter(self, observer: Observer) -> None:
        """A view with other strides gives the same range as its copy."""
        view = _normal(6, 7, 8).transpose(2, 0, 1)
        assert _range(observer, [view], 8) == _range(observer, [np.ascontiguousarray(view)], 8)

    def test_leaves_its_input_alone(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Batches are not written to."""
        before = [batch.copy() for batch in batches]
        _range(observer, batches, 8)
        for batch, copied in zip(batches, before, strict=True):
            np.testing.assert_array_equal(batch, copied)

    def test_settings_survive_a_round_trip(self, observer: Observer) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(observer)


def _fresh(observer: Observer) -> Observer:
    """A copy with the same settings that has seen nothing, as calibration makes one for each tensor."""
    return dataclasses.replace(observer)  # type: ignore[type-var]  # every component is a dataclass


def _range(observer: Observer, batches: list[NDArray[np.float32]], bits: int) -> tuple[float, float]:
    """What a fresh copy answers after the batches."""
    copied = _fresh(observer)
    for batch in batches:
        copied.update(batch)
    return copied.range(bits)


class MetricContract:
    """The promises of `Metric`. A metric that is not about classes overrides the fixtures `expected` and `perfect`."""

    @pytest.fixture
    def metric(self) -> Metric:
        """The component under test."""
        raise NotImplementedError("a subclass of MetricContract gives the fixture `metric`")

    @pytest.fixture
    def expected(self, metric: Metric) -> Array:
        """Targets, or the FP32 file's outputs, of some examples; axis 0 counts them."""
        return _normal(32, 10) if metric.against_reference else np.arange(32) % 10

    @pytest.fixture
    def perfect(self, metric: Metric, expected: Array) -> Array:
        """Outputs that deserve the highest value."""
        return expected.copy() if metric.against_reference else 10 * np.eye(10, dtype=np.float32)[expected]

    @pytest.fixture
    def outputs(self, perfect: Array) -> Array:
        """Outputs of a poor model."""
        return _normal(*perfect.shape, seed=1)

    def test_one_row_for_each_example(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Statistics are finite float64, shape (N,) or (N, k)."""
        statistics = metric.statistics(outputs, expected)
        assert statistics.dtype == np.float64
        assert statistics.ndim in {1, 2}
        assert len(statistics) == len(outputs)
        assert np.isfinite(statistics).all()

    def test_examples_do_not_influence_each_other(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """The statistics of a subset are the subset of the statistics; paired intervals and early stops rely on it."""
        whole = metric.statistics(outputs, expected)
        for chosen in (slice(0, 1), slice(3, 20), slice(None, None, -1)):
            np.testing.assert_allclose(metric.statistics(outputs[chosen], expected[chosen]), whole[chosen], rtol=1e-9)

    def test_value_is_a_finite_number(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Also for a single example, and in any order of the examples."""
        statistics = metric.statistics(outputs, expected)
        assert isinstance(metric.value(statistics), float)
        assert math.isfinite(metric.value(statistics[:1]))
        assert metric.value(statistics[::-1]) == pytest.approx(metric.value(statistics))

    def test_value_of_a_resample(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Also where some examples are drawn several times and others never, as a bootstrap does."""
        statistics = metric.statistics(outputs, expected)
        assert math.isfinite(metric.value(statistics[[0, 0, 0, -1]]))
        assert metric.value(np.concatenate([statistics, statistics])) == pytest.approx(metric.value(statistics))

    def test_shares_lie_between_0_and_1(self, metric: Metric, outputs: Array, perfect: Array, expected: Array) -> None:
        """What is shown in per cent is a share."""
        values = [metric.value(metric.statistics(found, expected)) for found in (outputs, perfect)]
        assert not metric.percent or all(0 <= value <= 1 for value in values)

    def test_larger_is_better(self, metric: Metric, outputs: Array, perfect: Array, expected: Array) -> None:
        """Perfect outputs beat poor ones."""
        best = metric.value(metric.statistics(perfect, expected))
        assert best > metric.value(metric.statistics(outputs, expected))

    def test_large_outputs_stay_finite(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Broken candidates give large numbers; they must score badly and not crash."""
        assert np.isfinite(metric.statistics(outputs * np.float32(1e30), expected)).all()

    def test_leaves_its_input_alone(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Outputs and targets are not written to, and asking twice gives the same."""
        outputs_before, expected_before = outputs.copy(), expected.copy()
        first = metric.statistics(outputs, expected)
        np.testing.assert_array_equal(first, metric.statistics(outputs, expected))
        np.testing.assert_array_equal(outputs, outputs_before)
        np.testing.assert_array_equal(expected, expected_before)

    def test_settings_survive_a_round_trip(self, metric: Metric) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(metric)


class SamplerContract:
    """The promises of `Sampler`: it proposes option indices of a search, as Optuna asks for them."""

    @pytest.fixture
    def sampler(self) -> Sampler:
        """The component under test."""
        raise NotImplementedError("a subclass of SamplerContract gives the fixture `sampler`")

    def test_depends_on_the_seed_only(self, sampler: Sampler) -> None:
        """The same seed proposes the same, whatever was drawn before; another one proposes something else."""
        first = _proposals(sampler, seed=0)
        np.random.default_rng().random()
        assert _proposals(copy.deepcopy(sampler), seed=0) == first != _proposals(sampler, seed=1)

    def test_proposes_indices_of_the_tables(self, sampler: Sampler) -> None:
        """Integers from 0 to the number of options less 1, also after trials that failed or missed the budget."""
        for proposal in _proposals(sampler):
            assert all(isinstance(proposal[name], int) and 0 <= proposal[name] < count for name, count in _TABLES.items())

    def test_does_not_repeat_one_proposal(self, sampler: Sampler) -> None:
        """What is asked for again and again has to differ."""
        assert len({tuple(proposal.values()) for proposal in _proposals(sampler)}) > 5

    def test_takes_several_objectives(self, sampler: Sampler) -> None:
        """The objective `pareto` has three."""
        assert len(_proposals(sampler, objective="pareto")) == _TRIALS

    def test_settings_survive_a_round_trip(self, sampler: Sampler) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(sampler)


_TABLES = {"conv1": 4, "conv2": 9, "head": 2, "channels/conv1": 5}
"""Parameter to its number of options."""

_TRIALS = 16


def _proposals(sampler: Sampler, seed: int = 0, objective: Objective = "accuracy") -> list[dict[str, int]]:
    """Parameters of the trials of a small study: one queued, one that fails, some that violate a constraint."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = SyntheticProblem(sizes=_TABLES, objective=objective, budget=Budget(size_ratio=0.6))
    study = problem.new_study(sampler.create(problem, seed))
    study.enqueue_trial(dict.fromkeys(_TABLES, 0))
    for number in range(_TRIALS):
        problem.finish(study, problem.ask(study), failed=number == 3)
    return [dict(trial.params) for trial in study.trials]


def _conv_file(path: Path, *, integer: bool) -> Array:
    """Write a convolution named `conv` with a Relu behind it, in float or between quantizers; returns its weight."""
    weight = (10 * _normal(8, 4, 3, 3)).round().clip(-127, 127).astype(np.int8)
    kernel: Array = weight.astype(np.float32) * WEIGHT_STEP
    node = onnx.helper.make_node
    if integer:
        parts = [
            node("QuantizeLinear", ["input", "scale", "zero"], ["codes"]),
            node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
            node("DequantizeLinear", ["weight", "weight_scale"], ["kernel"]),
            node("Conv", ["values", "kernel"], ["sum"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["sum"], ["positive"]),
            node("QuantizeLinear", ["positive", "out_scale", "out_zero"], ["result"]),
            node("DequantizeLinear", ["result", "out_scale", "out_zero"], ["output"]),
        ]
        grids = {"scale": INPUT_STEP, "weight_scale": WEIGHT_STEP, "out_scale": OUTPUT_STEP}
        zeros = {"zero": np.uint8(INPUT_ZERO), "out_zero": np.uint8(0)}
        tensors = {"weight": weight, **{name: np.float32(step) for name, step in grids.items()}, **zeros}
    else:
        parts = [
            node("Conv", ["input", "kernel"], ["sum"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["sum"], ["output"]),
        ]
        tensors = {"kernel": kernel}
    _save_file(path, parts, tensors, ["N", 4, 6, 6], ["N", 8, 6, 6])
    return kernel


INPUT_STEP, INPUT_ZERO, WEIGHT_STEP = 0.05, 128, 0.02
OUTPUT_STEP = 0.1
"""Grids of the integer file of `_conv_file`; the output's zero point is 0."""


def _save_file(
    path: Path, nodes: Sequence[Any], tensors: dict[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", inputs), ("output", outputs))
    ]
    stored = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()]
    graph = onnx.helper.make_graph(list(nodes), "net", ends[:1], ends[1:], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10), path)


class TargetContract:
    """The promises of `Target`: what it says about its runtime, and what its session module does with a file."""

    @pytest.fixture
    def target(self) -> Target:
        """The component under test."""
        raise NotImplementedError("a subclass of TargetContract gives the fixture `target`")

    @pytest.fixture
    def session(self, target: Target) -> Any:
        """The session module."""
        return load_module(str(target.session_file))

    def test_capabilities_name_what_exists(self, target: Target) -> None:
        """Bits that can be stored, operators of ONNX, and each operator in one role."""
        found = target.capabilities()
        assert all(bits and set(bits) <= set(range(2, 9)) for bits in found.containers.values())
        assert all(onnx.defs.has(name) for name in found.integer_ops | found.passthrough_ops)
        assert not found.integer_ops & found.passthrough_ops
        assert all(set(ways) <= set(get_args(Activation)) for ways in found.activations.values())
        assert {*found.activations, *found.group_sizes} <= set(found.containers)

    def test_options_are_json(self, target: Target) -> None:
        """They travel to the measuring process."""
        assert json.loads(json.dumps(target.options())) == target.options()
        assert target.threads >= 1

    def test_session_file_is_self_contained(self, target: Target) -> None:
        """It is loaded without torch and without autocompress, as on another device."""
        code = (
            "import importlib.util, sys; spec = importlib.util.spec_from_file_location('session', sys.argv[1]); "
            "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
            "print(sorted({'torch', 'autocompress'} & set(sys.modules)))"
        )
        command = [sys.executable, "-P", "-c", code, str(target.session_file)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

    def test_version_names_the_runtime(self, session: Any) -> None:
        """Name and version, two words."""
        name, version = session.version().split()
        assert name
        assert version[0].isdigit()

    @pytest.mark.parametrize("optimize", [True, False])
    @pytest.mark.parametrize("integer", [True, False])
    def test_computes_what_the_file_says(
        self, target: Target, session: Any, tmp_path: Path, integer: bool, optimize: bool
    ) -> None:
        """For any number of examples and threads; integers within one step of the output."""
        kernel = torch.from_numpy(_conv_file(tmp_path / "conv.onnx", integer=integer))
        for count, threads in ((1, 1), (5, 2)):
            run = session.load(str(tmp_path / "conv.onnx"), threads, optimize, **target.options())
            inputs = _normal(count, 4, 6, 6)
            values = torch.from_numpy(inputs)
            if integer:
                values = torch.fake_quantize_per_tensor_affine(values, INPUT_STEP, INPUT_ZERO, 0, 255)
            expected = torch.nn.functional.conv2d(values, kernel, padding=1).relu()
            (outputs,) = run([inputs])
            limit = 255 * OUTPUT_STEP if integer else math.inf
            np.testing.assert_allclose(outputs, expected.clamp(max=limit), atol=1.01 * OUTPUT_STEP if integer else 1e-4)

    def test_tells_which_nodes_compute_in_integers(self, target: Target, session: Any, tmp_path: Path) -> None:
        """The quantized convolution does, by the name that the file gives it; the float one does not."""
        for integer in (True, False):
            _conv_file(tmp_path / "conv.onnx", integer=integer)
            names = session.integer_nodes(str(tmp_path / "conv.onnx"), [_normal(1, 4, 6, 6)], **target.options())
            assert ("conv" in names) == integer, f"integer nodes: {names}"

    def test_a_broken_file_is_an_error(self, target: Target, session: Any, tmp_path: Path) -> None:
        """Not the end of the process."""
        (tmp_path / "broken.onnx").write_bytes(b"no model")
        with pytest.raises(Exception, match=r"."):
            session.load(str(tmp_path / "broken.onnx"), 1, True, **target.options())

    def test_settings_survive_a_round_trip(self, target: Target) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(target)


def make_study(folder: Path, metric: str = "accuracy", percent: bool = True) -> StudyContext:
    """A study whose FP32 file exists, below `folder`."""
    study = folder / "study"
    study.mkdir(parents=True, exist_ok=True)
    _conv_file(study / "fp32.onnx", integer=False)
    return StudyContext(
        id="ab" * 16,
        name="net-accuracy-01234567",
        model="net",
        data="0123",
        target="runtime",
        metric=metric,
        device="a processor",
        objective="accuracy",
        budget=Budget(size_ratio=0.5),
        folder=study,
        baseline=_measured(1.0, 0.0),
        reference=Artifact.of(study / "fp32.onnx", "onnx"),
        versions={"runtime": "runtime 1.0", "autocompress": "0.1.0"},
        config={"search": {"trials": 3}},
        percent=percent,
        environment={"id": "0123abcd", "device": "a processor", "flags": ["avx2"], "governor": None, "threads": 1, "load": 0.5},
        self_check=Latency(2.0, 2.2, 2.0, 1.001, 0.996, 1.006, 40, "a processor"),
    )


def _measured(ratio: float, drop: float) -> Measurement:
    timed = Latency(2.0 * ratio, 2.2 * ratio, 2.0, ratio, 0.99 * ratio, 1.01 * ratio, 20, "a processor")
    latency = dataclasses.replace(timed, environment="0123abcd", load=0.5)
    figures: dict[str, Any] = {"latency_ms": 2.0 * ratio, "latency_ratio": ratio, "accuracy": 0.9 - drop, "accuracy_drop": drop}
    return Measurement(size_bytes=int(1000 * ratio), size_ratio=ratio, images=100, latency=latency, **figures)


def make_records(study: StudyContext) -> list[TrialRecord]:
    """Three finished trials: one that was measured, one that was too large, one that failed."""
    policy = Policy({"conv": LayerPolicy("int8", 8)})
    row = LayerRow("conv", "conv2d", 288, 1000, "int8", 8, "", 0.0, "int8", 288, -1.0, 1.0, 0.0)
    large = Measurement(size_bytes=700, size_ratio=0.7)
    ends: list[tuple[State, Gate, str, Measurement]] = [
        ("complete", "done", "", _measured(0.4, 0.01)),
        ("pruned", "size", "size_ratio 0.7 exceeds the budget 0.5", large),
        ("failed", "build", "CheckError: odd", Measurement()),
    ]
    return [
        TrialRecord(number, "trial", state, gate, reason, policy, figures, study.budget.violations(figures), "cd" * 32, (row,))
        for number, (state, gate, reason, figures) in enumerate(ends)
    ]


def make_result(study: StudyContext, records: Sequence[TrialRecord], status: Status = "feasible") -> SearchResult:
    """The answer of the study: the first trial's file, which exists below the study's folder."""
    path = study.folder / "best" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    _conv_file(path, integer=True)
    return SearchResult(
        status=status,
        objective=study.objective,
        budget=study.budget,
        baseline=Final(study.reference, study.baseline, (0.85, 0.95)),
        best=Final(Artifact.of(path, "onnx"), _measured(0.4, 0.01), (0.84, 0.94)),
        policy=records[0].policy if records else Policy(),
        best_trial=0 if records else None,
        drop=0.01,
        drop_ci=(0.0, 0.02),
        drop_upper=0.018,
        selection_gap=0.0,
        binding_constraint=None,
        records=list(records),
        front=[0] if records else [],
        seconds=10.0,
        folder=study.folder,
        versions=study.versions,
        device=study.device,
        minimum_runtime={"opset": OPSET},
        reasons=["a reason"],
        quality=study.quality,
        environment=study.environment,
        self_check=study.self_check,
    )


class TrackerContract:
    """The promises of `Tracker`: it hears a whole search, again and again, and never raises."""

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Tracker:
        """The component under test, which has heard nothing; it keeps what it stores below `tmp_path`."""
        raise NotImplementedError("a subclass of TrackerContract gives the fixture `tracker`")

    @pytest.mark.parametrize("status", get_args(Status))
    def test_hears_a_search_to_its_end(self, tracker: Tracker, tmp_path: Path, status: Status) -> None:
        """Trials of every state, and an answer of every status; what it returns is a line for the person or nothing."""
        study = make_study(tmp_path)
        answer = _tell(tracker, study, [], make_records(study), status)
        assert answer is None or "\n" not in answer

    def test_hears_of_a_metric_that_is_no_share(self, tracker: Tracker, tmp_path: Path) -> None:
        """Values below 0 and drops above 1 occur."""
        study = make_study(tmp_path, "squared_error", percent=False)
        figures = dataclasses.replace(study.baseline, accuracy=-12.5, accuracy_drop=3.0)
        records = [dataclasses.replace(record, measurement=figures) for record in make_records(study)[:1]]
        _tell(tracker, dataclasses.replace(study, baseline=figures), [], records)

    def test_goes_on_where_an_earlier_search_stopped(self, tracker: Tracker, tmp_path: Path) -> None:
        """A fresh copy, as the next process has it, is given what was told before, all of it or some of it."""
        study = make_study(tmp_path)
        records = make_records(study)
        with _notifier(tracker) as notify:
            notify("autocompress_search_started", study=study, records=[])
            notify("autocompress_trial_finished", study=study, record=records[0])
        _tell(dataclasses.replace(tracker), study, records[:2], records[2:])  # type: ignore[type-var]

    def test_hears_of_a_search_without_trials(self, tracker: Tracker, tmp_path: Path) -> None:
        """It was interrupted before the first one ended."""
        _tell(tracker, make_study(tmp_path), [], [], "interrupted")

    def test_settings_survive_a_round_trip(self, tracker: Tracker) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(tracker)


@contextmanager
def _notifier(tracker: Tracker) -> Iterator[Notifier]:
    """As in a search, but what goes wrong in the tracker is raised."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with Notifier(manager, (tracker,)) as notify, warnings.catch_warnings():
        warnings.simplefilter("error", TrackerWarning)
        yield notify


def _tell(
    tracker: Tracker,
    study: StudyContext,
    earlier: Sequence[TrialRecord],
    new: Sequence[TrialRecord],
    status: Status = "feasible",
) -> str | None:
    """What the tracker answers after a search that finds the earlier records and adds the new ones."""
    with _notifier(tracker) as notify:
        notify("autocompress_search_started", study=study, records=earlier)
        for record in new:
            notify("autocompress_trial_finished", study=study, record=record)
        result = make_result(study, [*earlier, *new], status)
        answers: list[str] = notify("autocompress_search_finished", study=study, result=result)
    return answers[0] if answers else None
