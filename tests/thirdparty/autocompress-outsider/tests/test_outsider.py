from __future__ import annotations

import pytest
import torch
from autocompress_outsider import PowerOfTwo, RandomKeep

from autocompress import Pruner, Quantizer
from autocompress.testing import PrunerContract, QuantizerContract, make_layer, make_stats


class TestPowerOfTwo(QuantizerContract):
    @pytest.fixture(params=[True, False])
    def quantizer(self, request: pytest.FixtureRequest) -> Quantizer:
        return PowerOfTwo(narrow=request.param)


class TestRandomKeep(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return RandomKeep(seed=3)


def test_scales_are_the_smallest_powers_of_two_that_cover() -> None:
    weight = torch.tensor([[127.0, 3.0], [-128.0, 1.0], [0.4, -0.1]])
    layer = make_layer((3, 2), "linear")
    found = PowerOfTwo().quantize(weight, 8, make_stats(weight, layer))
    assert found.scale.tolist() == [1.0, 2.0, 2**-8]
    assert found.codes.tolist() == [[127, 3], [-64, 0], [102, -26]]


def test_another_seed_keeps_other_weights() -> None:
    weight = torch.ones(4, 4)
    stats = make_stats(weight, make_layer((4, 4), "linear"))
    assert not torch.equal(RandomKeep(0).score(weight, stats), RandomKeep(1).score(weight, stats))
