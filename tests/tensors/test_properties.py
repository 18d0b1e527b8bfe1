"""Tensors that nobody would choose: denormal, huge, constant, empty; figures against numpy in float64.

A dozen cases for each property; `HYPOTHESIS_PROFILE=full` makes it 5,000 in all.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from numpy.typing import NDArray
from torch import Tensor

from autocompress import Grid, Histogram, Observer, QuantizedTensor, Quantizer, RowStatistics, ScaleRows, lloyd_max, nearest
from autocompress.network.graph import Layer
from autocompress.policy import LayerPolicy
from autocompress.registry import load_registry
from autocompress.tensors.narrow_weights import LARGEST, narrowed
from autocompress.tensors.ranges import Range
from autocompress.tensors.sparsity import largest, n_of_m, weight_mask
from autocompress.testing.layers import make_layer, make_stats

Array = NDArray[Any]

WHATEVER = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "short", max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=WHATEVER
)
settings.register_profile("full", max_examples=340, deadline=None, database=None, suppress_health_check=WHATEVER)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

REGISTRY = load_registry()
SINGLE = np.finfo(np.float32)
WIDTHS = st.integers(2, 8)
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def values(most: float = 2.0**127) -> st.SearchStrategy[float]:
    """Of float32: any number up to `most` in magnitude, and often one of a narrow range."""
    return st.one_of(
        st.floats(-most, most, width=32, allow_subnormal=True),
        st.floats(-1.0, 1.0, width=32),
        st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 0.5, 1.0, -1.0]),
    )


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """A matrix of at most 5 channels with at most 9 inputs; often constant, all 0, of one scale, or with an empty channel."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(0, 9)))
    array = draw(numbers.arrays(np.float32, shape, elements=values(), fill=st.nothing()))
    kind = draw(st.sampled_from(["any", "any", "zeros", "constant", "tiny", "channel of zeros"]))
    with np.errstate(over="ignore", under="ignore"):
        array = {
            "any": array,
            "zeros": 0 * array,
            "constant": np.full_like(array, draw(values())),
            "tiny": np.sign(array) * np.float32(1e-42),
            "channel of zeros": array * (np.arange(shape[0]) > 0)[:, None].astype(np.float32),
        }[kind]
    return torch.from_numpy(array.astype(np.float32))


def layer_of(weight: Tensor, axis: int = 0) -> Layer:
    return make_layer(tuple(weight.shape), "linear", channel_axis=axis)


def decoded(quantized: QuantizedTensor) -> Array:
    """What the codes stand for, by the definition of `QuantizedTensor`, in float64."""
    codes = quantized.codes.double().numpy()
    if quantized.codebook is not None:
        codes = quantized.codebook.double().numpy()[quantized.codes.long().numpy()]
    result: Array = (codes - spread(quantized, quantized.zero_point)) * spread(quantized, quantized.scale)
    return result


def spread(quantized: QuantizedTensor, parameter: Tensor) -> Array:
    """A parameter for each code of a matrix whose channels come first."""
    plain = parameter.double().numpy()
    if quantized.group_size is not None:
        return np.repeat(plain, quantized.group_size, axis=1)[:, : quantized.codes.shape[1]]
    return np.broadcast_to(plain.reshape(-1, 1), quantized.codes.shape)


def check_form(quantized: QuantizedTensor, weight: Tensor, bits: int) -> None:
    assert quantized.codes.dtype == torch.int8 and quantized.codes.shape == weight.shape
    assert bool((quantized.scale > 0).all()) and bool(quantized.scale.isfinite().all())
    half = 2 ** (bits - 1)
    low, high = (0, 2**bits - 1) if quantized.codebook is not None else (-half, half - 1)
    assert not quantized.codes.numel() or (low <= int(quantized.codes.min()) and int(quantized.codes.max()) <= high)
    exact = decoded(quantized)
    assert np.isfinite(quantized.dequantize().numpy()).all()
    np.testing.assert_allclose(quantized.dequantize().double().numpy(), exact, rtol=2e-7, atol=SINGLE.smallest_subnormal)


@given(weights(), WIDTHS, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, 1, 2, 3, 100]), st.data())
def test_affine_codes_are_the_nearest_of_the_grid(
    weight: Tensor, bits: int, per_channel: bool, symmetric: bool, narrow: bool, group_size: int | None, data: st.DataObject
) -> None:
    settings = {"bits": bits, "per_channel": per_channel, "symmetric": symmetric, "narrow": narrow, "group_size": group_size}
    signed = data.draw(st.booleans())
    quantizer: Quantizer = REGISTRY.create("quantizer", "int8", {**settings, "signed": signed})
    layer = layer_of(weight)
    found = quantizer.quantize(weight, bits, make_stats(weight, layer))
    check_form(found, weight, bits)
    exact, scale = weight.double().numpy(), spread(found, found.scale)
    if not signed and symmetric:
        exact = exact.clip(min=0)  # such a grid has no negative values
    moved = np.abs(decoded(found) - exact)
    assert (moved <= scale * (0.5 + 1e-3) * (1 if symmetric else 2) + np.abs(exact) * 1e-5).all(), (
        "more than half a step, or a whole one where zero moved the grid"
    )


@given(weights(), WIDTHS, st.booleans())
def test_the_scale_of_least_error_loses_no_more_than_the_covering_one(weight: Tensor, bits: int, narrow: bool) -> None:
    rows = weight.double()
    statistics = RowStatistics.of(rows)
    grid = Grid.covering(*statistics.range, bits, narrow=narrow)
    fitted = grid.fitted(rows)
    errors = [one.error(rows).numpy() for one in (fitted, grid)]
    assert (errors[0] <= errors[1] * (1 + 1e-9)).all()
    reference = ((grid.values(grid.codes(rows)) - rows) ** 2).sum(1, keepdim=True).numpy()
    np.testing.assert_allclose(errors[1], reference, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("cells", ["uniform", "kmeans"])
@given(weights(), st.sampled_from([2, 3, 4, 7]), st.data())
def test_means_of_cells(cells: str, weight: Tensor, bits: int, data: st.DataObject) -> None:
    mask = torch.from_numpy(data.draw(numbers.arrays(np.bool_, tuple(weight.shape))))
    quantizer: Quantizer = REGISTRY.create("quantizer", "mean_rounding", {"cells": cells, "bits": [bits]})
    layer = layer_of(weight)
    found = quantizer.quantize(weight, bits, make_stats(weight, layer), mask)
    check_form(found, weight, bits)
    assert not found.dequantize()[~mask].any()
    assert int(found.numbers.abs().max()) <= 255 if found.codes.numel() else True
    if found.codebook is not None:
        assert 0 in found.codebook and bool((found.codebook.int().diff() > 0).all())


@given(weights(), WIDTHS, st.sampled_from(["int8", "int4"]), st.data())
def test_removed_weights_decode_to_zero_and_the_rest_round_trips(
    weight: Tensor, bits: int, name: str, data: st.DataObject
) -> None:
    mask = torch.from_numpy(data.draw(numbers.arrays(np.bool_, tuple(weight.shape))))
    quantizer: Quantizer = REGISTRY.create("quantizer", name, {"bits": bits})
    found = quantizer.quantize(weight, bits, make_stats(weight, layer_of(weight)), mask)
    check_form(found, weight, bits)
    assert not found.dequantize()[~mask].any()
    assume(bool((found.scale >= SINGLE.tiny * 256).all()))
    assert torch.equal(found.rounded(found.dequantize()).codes, found.codes), "what is on the grid stays there"


@given(weights(), st.booleans(), st.sampled_from(["int8", "int4"]))
def test_narrowed_codes_lose_no_sum(weight: Tensor, symmetric: bool, name: str) -> None:
    quantizer: Quantizer = REGISTRY.create("quantizer", name, {"bits": 8, "symmetric": symmetric})
    found = narrowed(quantizer.quantize(weight, 8, make_stats(weight, layer_of(weight))), weight)
    assert not found.numbers.numel() or int(found.numbers.abs().max()) <= LARGEST + 1
    assert bool((found.scale > 0).all()) and np.isfinite(found.dequantize().numpy()).all()


@given(weights(), st.sampled_from(TYPES), st.data())
def test_statistics_of_rows(weight: Tensor, kind: torch.dtype, data: st.DataObject) -> None:
    rows = weight.clamp(-6e4, 6e4).to(kind)
    kept = torch.from_numpy(data.draw(numbers.arrays(np.bool_, tuple(weight.shape))))
    found = RowStatistics.of(rows.double(), kept)
    for row, mask, low, high, mean in zip(
        rows.double().numpy(), kept.numpy(), found.minimum, found.maximum, found.mean, strict=True
    ):
        stays = row[mask]
        assert float(low) == (stays.min() if len(stays) else 0.0)
        assert float(high) == (stays.max() if len(stays) else 0.0)
        np.testing.assert_allclose(float(mean), stays.mean() if len(stays) else 0.0, rtol=1e-9, atol=1e-12)
    low, high = found.range
    assert bool((low <= 0).all()) and bool((high >= 0).all())


@given(weights(), st.sampled_from([None, 1, 2, 4, 50]), st.booleans(), st.booleans())
def test_rows_hold_every_weight_once(weight: Tensor, group_size: int | None, per_channel: bool, turned: bool) -> None:
    axis = int(turned)
    weight = weight.sign() if not turned else weight.sign().T
    layer = make_layer(tuple(weight.shape), "linear", channel_axis=axis)
    rows = ScaleRows.of(weight, layer, per_channel=per_channel, group_size=group_size)
    assert int(rows.kept.sum()) == weight.numel()
    scale = torch.ones(len(rows.values), 1)
    again = rows.quantized(rows.values, scale, 8)
    assert torch.equal(again.codes.float(), weight)
    assert torch.equal(again.dequantize(), weight)


@given(st.lists(numbers.arrays(np.float32, st.integers(0, 40), elements=values()), max_size=4))
def test_a_histogram_counts_all_but_zeros_within_its_bins(batches: list[Array]) -> None:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    seen = np.concatenate([np.zeros(0, np.float32), *batches]).astype(np.float64)
    assert int(histogram.counts.sum()) == np.count_nonzero(seen)
    assert histogram.low == min(0.0, seen.min(initial=0.0)) and histogram.high == max(0.0, seen.max(initial=0.0))
    filled = histogram.values(histogram.counts.nonzero()[0])
    for value in seen[seen != 0]:
        assert np.abs(filled - value).min() <= 0.75 * histogram.width + SINGLE.smallest_subnormal


@pytest.mark.parametrize("name", sorted(REGISTRY.names("observer")))
@given(st.lists(numbers.arrays(np.float32, st.integers(0, 30), elements=values()), max_size=3), st.sampled_from([8, 16]))
@settings(max_examples=max(5, settings().max_examples // 5))
def test_ranges_lie_within_what_was_seen(name: str, batches: list[Array], bits: int) -> None:
    observer: Observer = REGISTRY.create("observer", name, {})
    for batch in batches:
        observer.update(batch)
    low, high = observer.range(bits)
    seen = np.concatenate([np.zeros(1, np.float32), *batches]).astype(np.float64)
    assert math.isfinite(low) and math.isfinite(high)
    slack = 1e-6 * np.abs(seen).max()
    assert seen.min() - slack <= low <= slack and -slack <= high <= seen.max() + slack
    if name == "minmax":
        assert (low, high) == (seen.min(), seen.max())
    check_range(Range.of(low, high, bits), low, high)


@given(values(), values(), st.sampled_from([8, 16]))
def test_a_range_holds_zero_and_its_ends(low: float, high: float, bits: int) -> None:
    low, high = sorted((low, high))
    check_range(Range.of(low, high, bits), low, high)


def check_range(grid: Range, low: float, high: float) -> None:
    assert grid.scale > 0 and math.isfinite(grid.scale)
    assert 0 <= grid.zero_point <= grid.most
    ends = -grid.zero_point * grid.scale, (grid.most - grid.zero_point) * grid.scale
    slack = 0.5 * grid.scale + grid.most * SINGLE.smallest_subnormal + 1e-5 * max(abs(low), abs(high))
    assert ends[0] - slack <= min(low, 0.0) and max(high, 0.0) <= ends[1] + slack


@given(weights(), st.floats(0, 1))
def test_exactly_the_share_is_removed_and_nothing_above_what_stays(score: Tensor, sparsity: float) -> None:
    mask = largest(score, sparsity)
    assert int((~mask).sum()) == round(sparsity * score.numel())
    assert not (mask.any() and (~mask).any()) or bool(score[~mask].max() <= score[mask].min())


@given(weights(), st.integers(1, 4), st.integers(2, 6))
def test_n_of_m_neighbours_stay(score: Tensor, n: int, m: int) -> None:
    assume(n < m)
    assert n_of_m(f"{n}:{m}") == (n, m)
    mask = weight_mask(score, layer_of(score), LayerPolicy(pruner="x", structure=f"{n}:{m}")).numpy()
    if score.shape[1] < m:  # no neighbours, and no window to look for them in
        assert mask.all()
        return
    for row, marks in zip(score.double().numpy(), mask, strict=True):
        for start in range(0, len(row), m):
            part, stays = row[start : start + m], marks[start : start + m]
            assert stays.sum() == math.ceil(n * len(part) / m)
            assert stays.all() or part[stays].min() >= part[~stays].max()


@given(numbers.arrays(np.float32, st.integers(1, 30), elements=values(2.0**100)), st.sampled_from([2, 3, 4, 16]), st.data())
def test_levels_are_ascending_means_of_their_cells(array: Array, count: int, data: st.DataObject) -> None:
    importance = data.draw(numbers.arrays(np.float32, len(array), elements=st.floats(0.0625, 16, width=32)))
    levels = lloyd_max(torch.from_numpy(array), torch.from_numpy(importance), count)
    exact, found = array.astype(np.float64), levels.double().numpy()
    assert len(found) == count and (np.diff(found) >= 0).all()
    slack = 1e-6 * np.abs(exact).max() + SINGLE.smallest_subnormal
    assert exact.min() - slack <= found.min() and found.max() <= exact.max() + slack
    error = (importance * np.abs(exact[:, None] - found).min(1) ** 2).sum()
    middle = np.average(exact, weights=importance)
    assert error <= (importance * (exact - middle) ** 2).sum() * (1 + 1e-5) + slack**2, "no worse than one level"


@given(weights(), st.lists(values(2.0**100), min_size=1, max_size=9, unique=True))
def test_nearest_is_the_argmin(weight: Tensor, levels: list[float]) -> None:
    ordered = torch.tensor(sorted(levels))
    chosen = ordered.double()[nearest(weight, ordered)].numpy()
    exact = weight.double().numpy()
    best = np.abs(exact[..., None] - ordered.double().numpy()).min(-1)
    np.testing.assert_allclose(np.abs(exact - chosen), best, rtol=1e-5, atol=float(SINGLE.smallest_subnormal) * 4)
