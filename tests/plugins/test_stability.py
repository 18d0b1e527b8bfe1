from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.stability import Stability
from scipy.stats import spearmanr
from torch import Tensor

from autocompress import Pruner
from autocompress.testing import PrunerContract, make_layer, make_stats


class TestStability(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return Stability()


def score(weight: Tensor, gradients: Tensor, eps: float = 1e-3) -> Tensor:
    stats = make_stats(weight, make_layer(tuple(weight.shape), "linear"), gradients)
    return Stability(eps=eps).score(weight, stats)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(8, 6, 20, generator=torch.Generator().manual_seed(2))


def test_score_follows_the_formula(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients.double().numpy() * weight.double().numpy()) ** 2
    mean = importance.mean(axis=0)
    np.testing.assert_allclose(score(weight, gradients), mean / (importance.std(axis=0) + 1e-3 * mean.mean()), rtol=1e-4)


def test_unstable_weights_are_cut_first() -> None:
    steady, erratic, useless = [1.0, -1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]  # the first two: equal mean
    gradients = torch.tensor([steady, erratic, useless]).t().reshape(4, 1, 3)
    found = score(torch.ones(1, 3), gradients)[0]
    assert found[0] > found[1] > found[2] == 0


def test_unit_of_the_loss_does_not_matter(weight: Tensor, gradients: Tensor) -> None:
    np.testing.assert_allclose(score(weight, gradients), score(weight, gradients * 1e-6), rtol=1e-3)


def test_strong_damping_ranks_like_importance(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients * weight).square().mean(dim=0)
    assert spearmanr(score(weight, gradients, eps=1e6).flatten(), importance.flatten()).statistic > 0.999
    assert spearmanr(score(weight, gradients).flatten(), importance.flatten()).statistic < 0.9


def test_single_sample_ranks_by_its_importance(weight: Tensor, gradients: Tensor) -> None:
    importance = (gradients[:1] * weight).square()[0]
    assert torch.equal(score(weight, gradients[:1]).flatten().argsort(), importance.flatten().argsort())
