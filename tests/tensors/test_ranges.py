from __future__ import annotations

import numpy as np
import pytest

from autocompress.tensors.ranges import Range


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.1), (-1e-3, 5.0), (-1e30, 1e30), (0.0, 1e-30), (-2.5, 0.0), (-7e-42, 1e-42), (2.0, 5.0)],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_grid_covers_the_range_and_holds_zero(low: float, high: float, bits: int) -> None:
    grid = Range.of(low, high, bits)
    levels = 2**bits - 1
    assert isinstance(grid.zero_point, int)
    assert 0 <= grid.zero_point <= levels
    assert grid.scale == float(np.float32(grid.scale)) > 0
    rounding = 1e-6 if grid.scale > 1e-37 else 0.05  # below, float32 itself is coarse
    assert (0 - grid.zero_point) * grid.scale <= min(low, 0) + (0.5 + levels * rounding) * grid.scale
    assert (levels - grid.zero_point) * grid.scale >= max(high, 0) - (0.5 + levels * rounding) * grid.scale
    assert grid.scale * levels == pytest.approx(max(high, 0) - min(low, 0), rel=rounding)


def test_one_sided_ranges_waste_no_code() -> None:
    assert Range.of(0.0, 255.0) == Range(1.0, 0)
    assert Range.of(100.0, 255.0) == Range(1.0, 0)
    assert Range.of(-255.0, 0.0) == Range(1.0, 255)
    assert Range.of(-255.0, -100.0) == Range(1.0, 255)
    assert Range.of(-1.0, 254.0) == Range(1.0, 1)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-3.0, 2.0), (-1.0, 1.9)])
def test_a_centred_grid_covers_the_range_in_signed_codes(low: float, high: float) -> None:
    grid = Range.of(low, high)
    centred = grid.centred()
    assert centred.signed
    assert centred.zero_point == 128
    assert -128 * centred.scale <= low + grid.scale / 2
    assert 127 * centred.scale >= high - grid.scale / 2
    assert centred.scale <= 1.5 * grid.scale
    assert centred.centred().scale == pytest.approx(centred.scale)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.17, 4.0), (-4.0, 0.5)])
def test_a_grid_is_not_centred_at_a_large_loss(low: float, high: float) -> None:
    grid = Range.of(low, high)
    assert grid.centred() == grid
    assert not grid.signed


def test_one_grid_covers_several() -> None:
    parts = Range.of(-1.0, 254.0), Range.of(-3.0, 2.0), Range.of(0.0, 300.0)
    low, high = Range.covering(parts).ends
    assert (low, high) == pytest.approx((-3.0, 300.0), abs=Range.covering(parts).scale / 2)
    assert Range.covering(parts[:1]) is parts[0]
    assert Range.covering([Range.of(-1.0, 1.0, 16), Range.of(0.0, 2.0, 16)]).bits == 16


def test_an_empty_range_has_a_grid() -> None:
    assert Range.of(0.0, 0.0) == Range(1.0, 0)
    assert Range.of(0.0, 1e-46) == Range(1.0, 0)  # vanishes in float32
