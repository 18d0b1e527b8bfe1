from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from autocompress.network.exporting import export
from autocompress.network.graph import LayerPair
from autocompress.network.pairs import layer_pairs

if TYPE_CHECKING:
    from tests.conftest import Tiny


def pairs_of(model: nn.Module, example: Tensor, folder: Path) -> list[LayerPair]:
    return layer_pairs(export(model, example, folder / "net.onnx"))


def test_pairs_of_the_tiny_network(tiny: Tiny) -> None:
    """The stem has two readers, an addition reads `outer`, the depthwise layer ends in a ReLU6, a mean reads `pointwise`."""
    assert layer_pairs(tiny.graph) == [LayerPair("inner.0", "outer.0", "Relu")]


def test_a_chain_with_and_without_activation(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    expected = [LayerPair("0", "1", ""), LayerPair("1", "3", "Relu")]
    assert pairs_of(model, torch.zeros(2, 4), tmp_path) == expected


@pytest.mark.parametrize("between", [nn.Sigmoid(), nn.ReLU6(), nn.LeakyReLU(), nn.Hardtanh(0.0, 1.0)])
def test_other_activations_are_no_pair(between: nn.Module, tmp_path: Path) -> None:
    assert pairs_of(nn.Sequential(nn.Linear(4, 5), between, nn.Linear(5, 2)), torch.zeros(2, 4), tmp_path) == []


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        outputs: Tensor = self.second(x) + self.third(x)
        return outputs


def test_two_readers_are_no_pair(tmp_path: Path) -> None:
    assert pairs_of(TwoReaders(), torch.zeros(2, 4), tmp_path) == []
