"""Reading codes back, and rounding another weight to a grid that is there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress import QuantizedTensor


def _bytes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int8)


GRIDS = {
    "per_channel": QuantizedTensor(torch.zeros(3, 8, dtype=torch.int8), torch.tensor([0.1, 1.0, 3.0]), _bytes(0, 0, 0), 0, 4),
    "zero_points": QuantizedTensor(torch.zeros(3, 8, dtype=torch.int8), torch.tensor([0.1, 1.0, 3.0]), _bytes(-8, 0, 5), 0, 4),
    "per_tensor": QuantizedTensor(
        torch.zeros(3, 8, dtype=torch.int8), torch.tensor(0.2), torch.tensor(1, dtype=torch.int8), 0, 5
    ),
    "channels_last": QuantizedTensor(
        torch.zeros(8, 3, dtype=torch.int8), torch.tensor([0.1, 1.0, 3.0]), _bytes(1, 0, -2), 1, 3
    ),
    "codebook": QuantizedTensor(
        torch.zeros(3, 8, dtype=torch.int8),
        torch.tensor([0.01, 0.1, 0.02]),
        _bytes(0, 0, 0),
        0,
        3,
        codebook=_bytes(-100, -30, -3, 0, 4, 60, 127),
    ),
    "blocks": QuantizedTensor(
        torch.zeros(2, 8, dtype=torch.int8),
        torch.tensor([[0.1, 0.5, 2.0], [1.0, 0.2, 0.3]]),
        torch.tensor([[0, 1, -1], [2, 0, 0]], dtype=torch.int8),
        0,
        4,
        group_size=3,
    ),
    "blocks_channels_last": QuantizedTensor(
        torch.zeros(8, 2, dtype=torch.int8),
        torch.tensor([[0.1, 0.5, 2.0], [1.0, 0.2, 0.3]]),
        torch.zeros(2, 3, dtype=torch.int8),
        1,
        4,
        group_size=3,
    ),
}


def representable(grid: QuantizedTensor, place: tuple[int, int]) -> Tensor:
    """Every value that one entry can have, float64."""
    channel, position = place if grid.axis == 0 else place[::-1]
    scale, zero_point = grid.scale, grid.zero_point
    if grid.group_size is not None:
        scale, zero_point = (part[channel, position // grid.group_size] for part in (scale, zero_point))
    elif scale.dim():
        scale, zero_point = scale[channel], zero_point[channel]
    levels = torch.arange(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1)) if grid.codebook is None else grid.codebook
    return (levels.double() - float(zero_point)) * float(scale)


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> QuantizedTensor:
    return GRIDS[request.param]


def weights(grid: QuantizedTensor) -> Tensor:
    return 3 * torch.randn(grid.codes.shape, generator=torch.Generator().manual_seed(0))


def test_rounding_takes_the_nearest_value_that_the_grid_has(grid: QuantizedTensor) -> None:
    weight = weights(grid)
    found = grid.rounded(weight).dequantize()
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            values = representable(grid, (row, column))
            wanted, got = weight[row, column].double(), found[row, column].double()
            assert (values - got).abs().min() <= 1e-5 * values.abs().max()  # one of the grid's values
            assert (wanted - got).abs() <= (values - wanted).abs().min() + 1e-5 * values.abs().max()


def test_rounding_changes_nothing_that_is_on_the_grid(grid: QuantizedTensor) -> None:
    rounded = grid.rounded(weights(grid))
    again = rounded.rounded(rounded.dequantize())
    assert torch.equal(again.codes, rounded.codes)
    assert rounded.codes.float().std() > 0.5  # the codes differ, so that this means something


def test_rounding_keeps_the_grid(grid: QuantizedTensor) -> None:
    rounded = grid.rounded(weights(grid))
    assert rounded.codes.dtype == torch.int8
    assert rounded.scale is grid.scale
    assert rounded.zero_point is grid.zero_point
    assert rounded.codebook is grid.codebook


def test_levels_are_what_the_codes_name() -> None:
    grid = GRIDS["codebook"]
    named = QuantizedTensor(_bytes(0, 3, 6)[None], torch.ones(1), _bytes(0), 0, 3, codebook=grid.codebook)
    assert named.levels.tolist() == [[-100, 0, 127]]
    assert GRIDS["per_channel"].levels is GRIDS["per_channel"].codes
