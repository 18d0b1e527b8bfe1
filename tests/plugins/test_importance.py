from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.importance import Importance
from torch import Tensor

from autocompress import Pruner
from autocompress.testing import PrunerContract, make_layer, make_stats


class TestImportance(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return Importance()


def loss(weight: Tensor, example: Tensor) -> Tensor:
    """Linear in the weight, so that its first-order expansion is exact."""
    return (weight @ example).sum()


def gradient(weight: Tensor, example: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, example), leaf)[0]


def test_score_is_the_squared_change_of_the_loss() -> None:
    torch.manual_seed(0)
    weight, examples = torch.randn(3, 5), torch.randn(8, 5)
    gradients = torch.stack([gradient(weight, example) for example in examples])
    score = Importance().score(weight, make_stats(weight, make_layer((3, 5), "linear"), gradients))
    for index in np.ndindex(3, 5):
        without = weight.clone()
        without[index] = 0
        changes = [loss(weight, example) - loss(without, example) for example in examples]
        assert score[index].item() == pytest.approx(np.mean(np.square(changes)), rel=1e-4)


def test_opposite_gradients_do_not_cancel() -> None:
    weight = torch.ones(1, 2)
    stats = make_stats(weight, make_layer((1, 2), "linear"), torch.tensor([[[3.0, 1.0]], [[-3.0, 1.0]]]))
    assert Importance().score(weight, stats).tolist() == [[9.0, 1.0]]
