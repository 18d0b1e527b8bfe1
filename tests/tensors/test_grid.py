"""The formulas of integer grids, against numbers worked out by hand and with numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from autocompress import Grid, RowStatistics, check_bits, positive_scale
from autocompress.errors import ConfigError

UNSIGNED = 128
"""What an unsigned 8-bit level is moved by when it is stored as int8."""


def grid_of(rows: Tensor, bits: int = 8, *, symmetric: bool = True, narrow: bool = False, signed: bool = True) -> Grid:
    low, high = RowStatistics.of(rows).range
    return Grid.covering(low, high, bits, symmetric=symmetric, narrow=narrow, signed=signed)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) + torch.linspace(-2, 2, 6)[:, None]


# --- the worked example ---


@pytest.mark.parametrize("symmetric", [True, False])
def test_worked_example_on_an_unsigned_8_bit_grid(symmetric: bool) -> None:
    values = torch.tensor([[0.5, 1.0, 1.5, 2.0]])
    grid = grid_of(values, symmetric=symmetric, signed=False)
    assert grid.scale.item() == 2 / 255
    assert grid.zero_point.item() + UNSIGNED == 0
    assert (grid.codes(values) + UNSIGNED).tolist() == [[64, 128, 191, 255]]
    np.testing.assert_allclose(grid.values(grid.codes(values)), np.array([[64, 128, 191, 255]]) * 2 / 255, rtol=1e-6)


def test_a_grid_that_starts_at_half_has_no_legal_zero_point() -> None:
    scale = np.float32(1.5 / 255)  # 0.5 to 2 in 255 steps
    zero_point = round(-0.5 / scale)
    assert zero_point == -85
    quantize = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    with pytest.raises((ValueError, OverflowError)):  # a byte cannot hold it
        onnx.helper.make_tensor("zero", onnx.TensorProto.UINT8, [], np.array([zero_point], np.uint8).tolist())
    clipped = [np.array([0.0, 0.5], np.float32), scale, np.uint8(max(zero_point, 0))]
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [2]), ("scale", []))]
    values.append(onnx.helper.make_tensor_value_info("zero", onnx.TensorProto.UINT8, []))
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [2])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([quantize], "g", values, [output]), opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    codes = ReferenceEvaluator(model).run(None, dict(zip(("x", "scale", "zero"), clipped, strict=True)))
    assert np.asarray(codes).tolist() == [[0, 85]]  # with the nearest legal one, 0.5 is not the first code


def test_zero_lies_on_every_grid(rows: Tensor) -> None:
    for symmetric in (True, False):
        for signed in (True, False):
            grid = grid_of(rows, symmetric=symmetric, signed=signed)
            assert ((grid.zero_point >= grid.least) & (grid.zero_point <= grid.most)).all()
            assert not grid.values(grid.codes(torch.zeros_like(rows))).any()


# --- statistics, range, scale, zero point ---


def test_statistics_are_those_of_numpy(rows: Tensor) -> None:
    found, array = RowStatistics.of(rows), rows.double().numpy()
    np.testing.assert_array_equal(found.minimum[:, 0], array.min(1))
    np.testing.assert_array_equal(found.maximum[:, 0], array.max(1))
    np.testing.assert_allclose(found.mean[:, 0], array.mean(1), rtol=1e-5, atol=1e-7)
    low, high = found.range
    np.testing.assert_array_equal(low[:, 0], np.minimum(array.min(1), 0))
    np.testing.assert_array_equal(high[:, 0], np.maximum(array.max(1), 0))


def test_statistics_of_what_is_kept() -> None:
    found = RowStatistics.of(torch.tensor([[1.0, 5.0, 9.0], [1.0, 2.0, 3.0]]), torch.tensor([[True, True, False], [False] * 3]))
    assert (found.minimum.tolist(), found.maximum.tolist(), found.mean.tolist()) == ([[1], [0]], [[5], [0]], [[3], [0]])


def test_statistics_of_nothing() -> None:
    for shape in ((0, 4), (3, 0)):
        assert RowStatistics.of(torch.zeros(shape)).mean.shape == (shape[0], 1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("narrow", [True, False])
def test_affine_grids_follow_the_formula(rows: Tensor, bits: int, narrow: bool) -> None:
    grid = grid_of(rows, bits, symmetric=False, narrow=narrow)
    least, most = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    array = rows.double().numpy()
    low, high = np.minimum(array.min(1), 0), np.maximum(array.max(1), 0)
    scale = (high - low) / (most - least)
    np.testing.assert_allclose(grid.scale[:, 0], scale, rtol=1e-6)
    zero_point = np.rint(least - low / grid.scale[:, 0].numpy())
    np.testing.assert_array_equal(grid.zero_point[:, 0], zero_point)
    codes = np.clip(np.rint(rows.numpy() / grid.scale.numpy()) + zero_point[:, None], least, most)
    np.testing.assert_array_equal(grid.codes(rows), codes)
    np.testing.assert_allclose(grid.values(grid.codes(rows)), (codes - zero_point[:, None]) * grid.scale.numpy(), rtol=1e-6)


def test_a_free_zero_point_makes_signed_and_unsigned_the_same(rows: Tensor) -> None:
    one, other = (grid_of(rows, symmetric=False, signed=signed) for signed in (True, False))
    assert torch.equal(one.codes(rows), other.codes(rows))
    assert torch.equal(one.zero_point, other.zero_point)


def test_an_unsigned_grid_with_its_zero_point_at_zero_is_twice_as_fine_and_has_no_negative_values() -> None:
    values = torch.tensor([[-1.0, 0.5, 2.0]])
    signed, unsigned = grid_of(values), grid_of(values, signed=False)
    assert unsigned.scale.item() == pytest.approx(2 / 255)
    assert signed.scale.item() == pytest.approx(2 / 127)
    assert unsigned.values(unsigned.codes(values)).tolist()[0][0] == 0.0


def test_ties_go_to_even_as_in_onnx() -> None:
    grid = Grid(torch.ones(1, 1), torch.zeros(1, 1), -128, 127)
    assert grid.codes(torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])).tolist() == [[0, 2, 2, 0, -2]]


def test_codes_outside_are_clipped() -> None:
    grid = Grid(torch.ones(1, 1), torch.full((1, 1), 3.0), -8, 7)
    assert grid.codes(torch.tensor([[-100.0, 100.0, 0.0]])).tolist() == [[-8, 7, 3]]


def test_a_row_without_weights_takes_the_mean_scale() -> None:
    assert positive_scale(torch.tensor([[2.0], [0.0], [4.0]])).tolist() == [[2.0], [2.0], [4.0]]
    assert positive_scale(torch.zeros(2, 1)).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("widths", [(1,), (9,), (4, 4), ()])
def test_widths_that_int8_cannot_store_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^quantizer\.mine"):
        check_bits("quantizer.mine", *widths)


def test_weights_too_small_for_a_float32_scale_have_the_scale_one() -> None:
    """Less than the smallest normal number, and less than a 127th of the smallest number at all."""
    scale = positive_scale(torch.tensor([[1e-39], [2**-149 / 127], [0.0]], dtype=torch.float64))
    assert scale.flatten().tolist() == [1.0, 1.0, 1.0]
