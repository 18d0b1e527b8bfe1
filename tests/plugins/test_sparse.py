from __future__ import annotations

import pytest
import torch
from autocompress_plugins.sparse import Sparse

from autocompress import Pruner
from autocompress.testing import PrunerContract, make_layer, make_stats


class TestSparse(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return Sparse()


def test_score_is_the_magnitude() -> None:
    weight = torch.tensor([[0.5, -2.0, 0.0]])
    assert Sparse().score(weight, make_stats(weight, make_layer((1, 3), "linear"))).tolist() == [[0.5, 2.0, 0.0]]
