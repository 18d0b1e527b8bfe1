"""Cutting a weight into rows, and putting codes back where the weights came from."""

from __future__ import annotations

import pytest
import torch

from autocompress import ScaleRows
from autocompress.testing import make_layer


def numbered(*shape: int) -> torch.Tensor:
    """Small whole numbers, each its own code."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 101).float().reshape(shape) + 1


CASES = {
    "conv2d": (make_layer((4, 3, 2, 2)), {}),
    "per_tensor": (make_layer((4, 3, 2, 2)), {"per_channel": False}),
    "channels_last": (make_layer((5, 4), "linear", 1), {}),
    "blocks": (make_layer((4, 6), "linear"), {"group_size": 3}),
    "ragged_blocks": (make_layer((4, 7), "linear"), {"group_size": 3}),
    "blocks_channels_last": (make_layer((7, 4), "linear", 1), {"group_size": 3}),
    "a_convolution_has_no_blocks": (make_layer((4, 3, 2, 2)), {"group_size": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_come_back_where_their_weights_were(name: str) -> None:
    layer, options = CASES[name]
    weight = numbered(*layer.shape)
    rows = ScaleRows.of(weight, layer, **options)  # type: ignore[arg-type]
    restored = rows.quantized(rows.values, torch.ones(len(rows.values), 1), 8)
    assert torch.equal(restored.codes.float(), weight)
    assert torch.equal(restored.dequantize(), weight)
    assert restored.codes.is_contiguous()


def test_each_row_has_the_weights_of_one_scale() -> None:
    layer = make_layer((2, 5), "linear")
    weight = numbered(2, 5)
    rows = ScaleRows.of(weight, layer, group_size=2)
    assert rows.values.tolist() == [[1, 2], [3, 4], [5, 0], [6, 7], [8, 9], [10, 0]]
    assert rows.kept.tolist() == [[True, True], [True, True], [True, False]] * 2
    scale = torch.arange(1.0, 7.0)[:, None]
    decoded = rows.quantized(torch.ones(6, 2), scale, 8)
    assert decoded.scale.shape == (2, 3)
    assert decoded.dequantize().tolist() == [[1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]


def test_scales_of_channels_that_are_not_first() -> None:
    weight = numbered(3, 2)
    rows = ScaleRows.of(weight, make_layer((3, 2), "linear", 1))
    decoded = rows.quantized(torch.ones(2, 3), torch.tensor([[1.0], [2.0]]), 8)
    assert decoded.dequantize().tolist() == [[1, 2]] * 3
    blocks = ScaleRows.of(weight, make_layer((3, 2), "linear", 1), group_size=2)
    decoded = blocks.quantized(torch.ones(4, 2), torch.arange(1.0, 5.0)[:, None], 8)
    assert decoded.dequantize().tolist() == [[1, 3], [1, 3], [2, 4]]


def test_removed_weights_are_zero_and_not_kept() -> None:
    weight, mask = numbered(2, 3), torch.tensor([[True, False, True], [False, True, True]])
    rows = ScaleRows.of(weight, make_layer((2, 3), "linear"), mask)
    assert torch.equal(rows.values, weight * mask)
    assert torch.equal(rows.kept, mask)
    assert weight.all()  # the weight itself is not written to


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_without_channels_has_a_scale_of_the_right_shape(per_channel: bool) -> None:
    rows = ScaleRows.of(torch.zeros(0, 4), make_layer((0, 4), "linear"), per_channel=per_channel)
    found = rows.quantized(rows.values, torch.ones(len(rows.values), 1), 8)
    assert found.codes.shape == (0, 4)
    assert found.scale.shape == ((0,) if per_channel else ())
