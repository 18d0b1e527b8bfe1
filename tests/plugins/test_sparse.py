from __future__ import annotations

import pytest
import torch
from autocompress_plugins.sparse import Sparse

from autocompress import Pruner, compensate
from autocompress.testing import PrunerContract, make_layer, make_stats


@pytest.mark.parametrize("compensated", [True, False])
class TestSparse(PrunerContract):
    @pytest.fixture
    def pruner(self, compensated: bool) -> Pruner:
        return Sparse(compensate=compensated)


def test_score_is_the_magnitude() -> None:
    weight = torch.tensor([[0.5, -2.0, 0.0]])
    assert Sparse().score(weight, make_stats(weight, make_layer((1, 3), "linear"))).tolist() == [[0.5, 2.0, 0.0]]


def test_what_is_left_is_compensated_unless_it_is_switched_off() -> None:
    random = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(4, 6, generator=random), torch.rand(1, 30, 6, generator=random)
    mask = weight.abs() > 0.5
    stats = make_stats(weight, make_layer((4, 6), "linear"), inputs=inputs)
    assert torch.equal(Sparse(compensate=False).update(weight, mask, stats), weight * mask)
    found = Sparse().update(weight, mask, stats)
    assert torch.equal(found, compensate(weight, mask, stats))
    assert not torch.equal(found, weight * mask)
