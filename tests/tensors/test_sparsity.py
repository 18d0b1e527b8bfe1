"""Masks: which weights stay, for each structure, checked entry by entry."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from autocompress_plugins.sparse import Sparse
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import PolicyError
from autocompress.network.graph import Layer
from autocompress.policy import LayerPolicy
from autocompress.tensors.sparsity import largest, n_of_m, share_removed, weight_mask
from autocompress.testing import make_layer, make_stats

LAYERS = {
    "linear": make_layer((5, 12), "linear"),
    "linear_odd": make_layer((5, 11), "linear"),
    "linear_channels_last": make_layer((11, 5), "linear", channel_axis=1),
    "conv2d": make_layer((6, 8, 3, 3)),
    "conv2d_odd": make_layer((6, 10, 3, 3)),
    "conv1d": make_layer((6, 8, 5), "conv1d"),
    "conv_transpose": make_layer((8, 6, 3, 3), "conv_transpose", channel_axis=1),
    "pointwise": make_layer((6, 9, 1, 1)),
    "depthwise": make_layer((6, 1, 3, 3), "depthwise"),
    "depthwise_of_one": make_layer((6, 1, 1, 1), "depthwise"),
    "few_inputs": make_layer((6, 3, 3, 3)),
    "single_channel": make_layer((1, 9), "linear"),
    "one_element": make_layer((1, 1), "linear"),
    "no_channels": make_layer((0, 4), "linear"),
}


def random_score(layer: Layer, *, ties: bool) -> Tensor:
    score = torch.randn(layer.shape, generator=torch.Generator().manual_seed(3))
    return score.round() if ties else score


def neighbours(layer: Layer, m: int) -> list[list[tuple[int, ...]]]:
    """Indices into the weight of each group of m neighbours, by the definition: along the inputs, else along the window."""
    input_axis = 1 - layer.channel_axis
    along = [input_axis] if layer.shape[input_axis] >= m else list(range(2, len(layer.shape)))
    fixed = [axis for axis in range(len(layer.shape)) if axis not in along]
    rows = []
    for outer in product(*(range(layer.shape[axis]) for axis in fixed)):
        row = []
        for inner in product(*(range(layer.shape[axis]) for axis in along)):
            places = dict(zip([*fixed, *along], [*outer, *inner], strict=True))
            row.append(tuple(places[axis] for axis in range(len(layer.shape))))
        rows += [row[start : start + m] for start in range(0, len(row), m)]
    return rows


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("structure", ["2:4", "1:4", "3:4", "1:2", "4:8", "2:3", "1:16"])
@pytest.mark.parametrize("name", LAYERS)
def test_of_each_m_neighbours_the_n_highest_stay(name: str, structure: str, ties: bool) -> None:
    layer = LAYERS[name]
    n, m = (int(part) for part in structure.split(":"))
    score = random_score(layer, ties=ties)
    mask = weight_mask(score, layer, LayerPolicy(pruner="p", structure=structure))
    assert (mask.dtype, mask.shape) == (torch.bool, score.shape)
    counted = 0
    for group in neighbours(layer, m):
        stay = [index for index in group if mask[index]]
        gone = [index for index in group if not mask[index]]
        assert len(stay) == math.ceil(n * len(group) / m)
        assert not gone or min(float(score[index]) for index in stay) >= max(float(score[index]) for index in gone)
        for index in gone:  # of equal ones the first stays
            assert all(other < index for other in stay if score[other] == score[index])
        counted += len(group)
    assert counted == mask.numel()
    assert not mask.numel() or share_removed(layer, structure) == pytest.approx(float((~mask).double().mean()))


def test_two_of_four_by_hand() -> None:
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0], [4.0, 4.0, 4.0, 4.0, 0.0, 0.0]])
    mask = weight_mask(score, make_layer((2, 6), "linear"), LayerPolicy(structure="2:4"))
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 1, 0]]
    flipped = weight_mask(score.T, make_layer((6, 2), "linear", channel_axis=1), LayerPolicy(structure="2:4"))
    assert torch.equal(flipped, mask.T)


def test_neighbours_of_a_convolution_are_input_channels() -> None:
    """Of a sparse kernel's four neighbours, none is another place of the window."""
    score = torch.zeros(1, 4, 1, 2)
    score[0, :, 0, 0], score[0, :, 0, 1] = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = weight_mask(score, make_layer((1, 4, 1, 2)), LayerPolicy(structure="2:4"))
    assert mask[0, :, 0, 0].int().tolist() == [1, 1, 0, 0]
    assert mask[0, :, 0, 1].int().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_share_is_exact_also_with_ties(name: str, share: float) -> None:
    layer = LAYERS[name]
    for ties in (False, True):
        score = random_score(layer, ties=ties)
        mask = weight_mask(score, layer, LayerPolicy(pruner="p", sparsity=share))
        assert int((~mask).sum()) == round(share * score.numel())
        assert not mask.any() or mask.all() or score[mask].min() >= score[~mask].max()


def test_of_equal_scores_the_first_are_removed_so_that_a_mask_is_the_same_every_time() -> None:
    assert largest(torch.zeros(5), 0.4).tolist() == [False, False, True, True, True]


def test_threshold_keeps_what_is_above_it() -> None:
    score = torch.tensor([[0.0, 0.5, 0.50001], [-1.0, 0.5, 2.0]])
    mask = weight_mask(score, make_layer((2, 3), "linear"), LayerPolicy(pruner="p", sparsity=0.9, threshold=0.5))
    assert mask.tolist() == [[False, False, True], [False, False, True]]


def zeroed(weight: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    return np.where(np.abs(weight) <= limit, np.float32(0), weight)


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_magnitude_threshold_is_exactly_zeroing_small_weights(limit: float) -> None:
    """Weights at the limit itself included."""
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[0, :4] = torch.tensor([limit, -limit, 0.0, np.nextafter(np.float32(limit), np.float32(1))])
    layer = make_layer((64, 32), "linear")
    stats, pruner = make_stats(weight, layer), Sparse(compensate=False)
    mask = weight_mask(pruner.score(weight, stats), layer, LayerPolicy(pruner="sparse", threshold=limit))
    np.testing.assert_array_equal(pruner.update(weight, mask, stats).numpy(), zeroed(weight.numpy(), limit))
    assert mask[0, :4].tolist() == [False, False, False, True]


@pytest.mark.parametrize("structure", ["4:2", "4:4", "0:4", "2:", "channel", "2:4:8", " 2:4", "02:4"])
def test_what_is_no_structure_is_refused(structure: str) -> None:
    assert n_of_m(structure) is None
    with pytest.raises(
        PolicyError, match=rf"structure '{structure}' with threshold None: expected 'unstructured' with a share"
    ):
        weight_mask(torch.zeros(2, 4), make_layer((2, 4), "linear"), LayerPolicy(structure=structure))


def test_n_of_m_has_no_use_for_a_threshold() -> None:
    with pytest.raises(PolicyError, match=r"structure '2:4' with threshold 0\.1: expected .* n:m with neither"):
        weight_mask(torch.zeros(2, 4), make_layer((2, 4), "linear"), LayerPolicy(structure="2:4", threshold=0.1))
