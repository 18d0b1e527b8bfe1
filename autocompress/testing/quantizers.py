"""The contract of `Quantizer`."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from autocompress.components import (
    QuantizedTensor,
    Quantizer,
)
from autocompress.testing.layers import make_stats
from autocompress.testing.round_trip import check_settings
from autocompress.testing.weights import Case, WeightContract, half_mask


class QuantizerContract(WeightContract):
    """The promises of `Quantizer`, on every kind of weight and at every bit-width that it offers."""

    @pytest.fixture
    def quantizer(self) -> Quantizer:
        """The component under test."""
        raise NotImplementedError("a subclass of QuantizerContract gives the fixture `quantizer`")

    def test_offers_valid_bit_widths(self, quantizer: Quantizer, case: Case) -> None:
        """No width twice, each from 2 to 8."""
        offered = list(quantizer.bit_widths(case[1]))
        assert len(offered) == len(set(offered))
        assert all(isinstance(bits, int) and 2 <= bits <= 8 for bits in offered), f"bit_widths: {offered}"

    def test_codes_fit_the_bits(self, quantizer: Quantizer, case: Case) -> None:
        """The codes are int8, of the weight's shape, within the signed range, or each the index of a level of the codebook."""
        for quantized in _quantized(quantizer, case):
            assert quantized.codes.dtype == torch.int8
            assert quantized.codes.shape == case[0].shape
            if quantized.codebook is None:
                _check_signed_range(quantized.codes, quantized.bits)
            else:
                assert not quantized.codes.numel() or quantized.codes.min() >= 0
                assert not quantized.codes.numel() or quantized.codes.max() < len(quantized.codebook)

    def test_says_whether_blocks_have_scales(self, quantizer: Quantizer, case: Case) -> None:
        """`blocks` is true exactly where what is given has a `group_size`: placement relies on it."""
        for quantized in _quantized(quantizer, case):
            assert quantizer.blocks(case[1]) == (quantized.group_size is not None)

    def test_codebook_is_legal(self, quantizer: Quantizer, case: Case) -> None:
        """The levels are int8, ascending, no more than the bits can name, and one is 0; the zero point is 0 then."""
        for quantized in _quantized(quantizer, case):
            if quantized.codebook is not None:
                assert quantized.codebook.dtype == torch.int8
                assert 1 <= len(quantized.codebook) <= 2**quantized.bits
                assert (quantized.codebook.int().diff() > 0).all(), f"codebook: {quantized.codebook.tolist()}"
                assert (quantized.codebook == 0).any(), f"codebook: {quantized.codebook.tolist()}"
                assert not quantized.zero_point.any()

    def test_scale_is_positive_and_finite(self, quantizer: Quantizer, case: Case) -> None:
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

    def test_zero_point_fits_the_bits(self, quantizer: Quantizer, case: Case) -> None:
        """The zero point is int8, of the scale's shape, within the signed range."""
        for quantized in _quantized(quantizer, case):
            assert quantized.zero_point.dtype == torch.int8
            assert quantized.zero_point.shape == quantized.scale.shape
            _check_signed_range(quantized.zero_point, quantized.bits)

    def test_error_is_bounded_by_the_scale(self, quantizer: Quantizer, case: Case) -> None:
        """No weight within the representable range moves by more than one scale, or farther than the nearest level.

        Unless the quantizer `compensates`.
        """
        for quantized in _quantized(quantizer, case):
            assert quantized.dequantize().isfinite().all()
            assert quantizer.compensates or (_steps_moved(case[0], quantized) <= 1 + 1e-5).all()

    def test_more_bits_lose_no_more(self, quantizer: Quantizer, case: Case) -> None:
        """Of several widths on offer with a codebook, and of those without, the wider has no larger squared error.

        Up to a quarter: where a range is cut, its few clipped weights decide, and they may lie closer to a coarser grid.
        """
        for learned in (False, True):
            found = [quantized for quantized in _quantized(quantizer, case) if (quantized.codebook is not None) == learned]
            found.sort(key=lambda quantized: quantized.bits)
            errors = [float((quantized.dequantize().double() - case[0]).square().sum()) for quantized in found]
            for narrow, wide in pairwise(errors):
                assert wide <= 1.25 * narrow + 1e-12 * float(case[0].double().square().sum())

    def test_masked_entries_are_exactly_zero(self, quantizer: Quantizer, case: Case) -> None:
        """Where the mask is False, codes decode to 0 and to nothing near it."""
        for mask in (half_mask(case[0]), torch.zeros(case[0].shape, dtype=torch.bool)):
            for quantized in _quantized(quantizer, case, mask):
                assert not quantized.dequantize()[~mask].any()
                assert (quantized.scale > 0).all(), f"scale: {quantized.scale.tolist()}"

    def test_full_mask_changes_nothing(self, quantizer: Quantizer, case: Case) -> None:
        """A mask that keeps all is the same as none."""
        _check_equal(_quantized(quantizer, case), _quantized(quantizer, case, torch.ones(case[0].shape, dtype=torch.bool)))

    def test_is_deterministic(self, quantizer: Quantizer, case: Case) -> None:
        """Equal input gives equal codes, whatever was drawn before; the global random state stays as it is."""
        first = _quantized(quantizer, case)
        torch.rand(1)
        state = torch.get_rng_state()
        _check_equal(first, _quantized(copy.deepcopy(quantizer), case))
        assert torch.equal(state, torch.get_rng_state()), "the global random state changed"

    def test_leaves_its_input_alone(self, quantizer: Quantizer, case: Case) -> None:
        """Weight and mask are not written to."""
        mask = half_mask(case[0])
        weight_before, mask_before = case[0].clone(), mask.clone()
        _quantized(quantizer, case, mask)
        assert torch.equal(case[0], weight_before)
        assert torch.equal(mask, mask_before)

    def test_settings_survive_a_round_trip(self, quantizer: Quantizer) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(quantizer)


def _quantized(quantizer: Quantizer, case: Case, mask: Tensor | None = None) -> list[QuantizedTensor]:
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


def _along_axis(values: Tensor, quantized: QuantizedTensor) -> Tensor:
    """Scale or zero point, shaped so that it broadcasts over the codes."""
    if quantized.group_size is not None:
        wide = values[:, torch.arange(quantized.codes.shape[1 - quantized.axis]) // quantized.group_size]
        return wide if quantized.axis == 0 else wide.T
    return values.reshape([-1 if values.dim() and axis == quantized.axis else 1 for axis in range(quantized.codes.dim())])


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
