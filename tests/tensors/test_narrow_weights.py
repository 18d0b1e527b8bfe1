"""Weights of 7 bits: what an integer kernel multiplies stays within -64 .. 64, and little is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from autocompress_plugins.affine import Affine, Int4, Int8
from torch import Tensor

from autocompress import QuantizedTensor, Quantizer
from autocompress.probing.probe_encodings import Encoding, encoded
from autocompress.tensors.narrow_weights import NarrowWeights, narrowed, with_narrow_weights
from autocompress.testing import make_layer, make_stats
from tests.conftest import Tiny

LAYER = make_layer((6, 4, 3, 3))
WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


class OneSided(Affine):
    """Numbers up to 255 without their zero point."""

    name = "one_sided"


def given(quantizer: Quantizer, weight: Tensor = WEIGHT, kind: str = "conv2d", mask: Tensor | None = None) -> QuantizedTensor:
    layer = replace(LAYER, kind=kind)
    bits = max(quantizer.bit_widths(layer))
    return quantizer.quantize(weight, bits, make_stats(weight, layer), mask)


@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["around 0", "one-sided"])
@pytest.mark.parametrize("quantizer", [Int8(), Int8(per_channel=False), OneSided(8, symmetric=False)])
def test_numbers_are_small_and_the_error_is_that_of_seven_bits(quantizer: Quantizer, shift: float) -> None:
    weight = WEIGHT + shift
    found = given(NarrowWeights(quantizer, ["conv2d"]), weight)
    assert int(found.numbers.abs().max()) <= 64
    assert found.bits == 7
    steps = (found.dequantize() - weight).abs().flatten(1) / found.scale.reshape(-1, 1)
    assert float(steps.max()) <= 0.51
    largest = weight.abs().flatten(1).amax(1) if found.scale.dim() else weight.abs().max()
    assert torch.all(found.scale <= 1.05 * largest / 63)


def test_the_width_says_seven_bits() -> None:
    assert NarrowWeights(Int8(), ["conv2d"]).bit_widths(LAYER) == [7]
    assert NarrowWeights(Int4(), ["conv2d"]).bit_widths(LAYER) == [4]
    assert NarrowWeights(Int8(), ["linear"]).bit_widths(LAYER) == [8]


@pytest.mark.parametrize("limited", [NarrowWeights(Int8(), ["linear"]), NarrowWeights(Int4(), ["conv2d"])])
def test_what_no_kernel_loses_stays_as_it_is(limited: NarrowWeights) -> None:
    ours, theirs = given(limited), given(limited.quantizer)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.scale, theirs.scale)
    assert ours.bits == theirs.bits


def test_blocks_compute_in_float_and_keep_their_codes() -> None:
    layer, weight = make_layer((8, 64), "linear"), torch.randn(8, 64)
    grouped = Int8(group_size=32)
    limited = NarrowWeights(grouped, ["linear"])
    assert limited.blocks(layer)
    assert list(limited.bit_widths(layer)) == [8]
    stats = make_stats(weight, layer)
    assert torch.equal(limited.quantize(weight, 8, stats).codes, grouped.quantize(weight, 8, stats).codes)


def test_removed_weights_stay_zero() -> None:
    mask = torch.rand(WEIGHT.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    found = given(NarrowWeights(Int8(), ["conv2d"]), mask=mask)
    assert not found.dequantize()[~mask].any()
    assert found.dequantize()[mask].any()


def test_levels_of_a_codebook_become_smaller() -> None:
    named = encoded(WEIGHT, LAYER, Encoding("codebook4", 4, "static"))
    found = narrowed(named, WEIGHT)
    assert int(named.numbers.abs().max()) == 127
    assert int(found.numbers.abs().max()) <= 64
    assert found.bits == 4
    assert torch.allclose(found.dequantize(), named.dequantize(), atol=float(named.scale.max()))


def test_components_know_the_limited_ones_by_their_names(tiny: Tiny) -> None:
    assert with_narrow_weights(tiny.components, []) is tiny.components
    limited = with_narrow_weights(tiny.components, ["conv2d"])
    assert list(limited.quantizers) == [quantizer.name for quantizer in limited.quantizers.values()] == ["int8", "int4"]
