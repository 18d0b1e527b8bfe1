"""Equalization against ranges read from the exported file, and against numbers worked out by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from autocompress_plugins.equalization import Equalization, EqualizationWarning
from torch import nn

from autocompress import LayerPair, Recovery
from autocompress.errors import ConfigError
from autocompress.network.exporting import export
from autocompress.network.pairs import layer_pairs
from autocompress.testing import RecoveryContract


class TestEqualization(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> Recovery:
        return Equalization()


def test_both_layers_get_the_geometric_mean_of_their_ranges() -> None:
    """r1 = (8, 1), r2 = (2, 4): s = sqrt(r1 r2) / r2 = (2, 1/2), so both ranges become (4, 2)."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[-2.0, 4.0]]))
    equalized = Equalization().prepare(model, torch.tensor([[1.0], [-4.0]]), [LayerPair("0", "2", "Relu")])
    assert equalized.get_parameter("0.weight").flatten().tolist() == pytest.approx([4.0, -2.0])
    assert equalized.get_parameter("0.bias").tolist() == pytest.approx([1.0, 6.0])
    assert equalized.get_parameter("2.weight").flatten().tolist() == pytest.approx([-4.0, 2.0])


def mobile_block() -> nn.Module:
    """Conv -> depthwise -> pointwise, each with batch norm, channels of very different size."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Conv2d(8, 4, 1),
    )
    for index in (1, 4):
        norm = model[index]
        nn.init.uniform_(norm.weight, 0.01, 10.0)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 4.0)
    return model.eval()


def test_a_depthwise_chain_with_batch_norm(tmp_path: Path) -> None:
    """In the file, both layers of each pair have equal ranges; outputs are as before."""
    model, example = mobile_block(), torch.randn(4, 3, 8, 8)
    pairs = layer_pairs(export(copy.deepcopy(model), example, tmp_path / "before.onnx"))
    assert [(pair.first, pair.second) for pair in pairs] == [("0", "3"), ("3", "6")]
    equalized = Equalization(rounds=100).prepare(model, example, pairs)
    with torch.no_grad():
        torch.testing.assert_close(equalized(example), model(example), rtol=1e-4, atol=1e-4)
    weights = export(equalized, example, tmp_path / "after.onnx").initializers
    first, second, third = (np.abs(weights[f"{name}.weight"]) for name in ("0", "3", "6"))
    depthwise = second.max((1, 2, 3))
    np.testing.assert_allclose(first.max((1, 2, 3)), depthwise, rtol=0.01)
    np.testing.assert_allclose(depthwise, third.max((0, 2, 3)), rtol=0.01)


def test_a_channel_without_weights_stays() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[0], model[2].weight[0, 1] = 0.0, 0.0
    before = copy.deepcopy(model.state_dict())
    equalized = Equalization().prepare(model, torch.ones(2, 1), [LayerPair("0", "2", "Relu")])
    for name, value in equalized.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_clip_does_not_scale_along() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU6(), nn.Linear(2, 1))
    equalized = Equalization().prepare(model, torch.ones(2, 1), [LayerPair("0", "2", "Clip")])
    assert torch.equal(equalized.get_parameter("0.weight"), model.get_parameter("0.weight"))


def test_a_pair_that_is_none_leaves_the_model_alone() -> None:
    """A sigmoid hides behind the name of a Relu: outputs would change, which the check notices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with pytest.warns(EqualizationWarning, match=r"left out: outputs would change by \d"):
        assert Equalization().prepare(model, torch.randn(8, 3), [LayerPair("0", "2", "Relu")]) is model


def test_layers_of_other_kinds_are_left_out() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    equalized = Equalization().prepare(model, torch.randn(2, 3, 5, 5), [LayerPair("0", "2", "Relu")])
    assert torch.equal(equalized.get_parameter("2.weight"), model.get_parameter("2.weight"))


def test_a_norm_without_weights_is_left_out() -> None:
    """It would divide the factor away again."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    equalized = Equalization().prepare(model, torch.randn(2, 3, 5, 5), [LayerPair("0", "3", "Relu")])
    assert torch.equal(equalized.get_parameter("3.weight"), model.get_parameter("3.weight"))


def test_no_rounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recover\.equalization\.rounds=0: expected at least 1"):
        Equalization(rounds=0)


def test_one_round_on_one_pair_is_enough() -> None:
    """The second round finds factors of 1."""
    torch.manual_seed(0)
    model, pairs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), [LayerPair("0", "2", "Relu")]
    once, often = (Equalization(rounds).prepare(model, torch.randn(4, 3), pairs) for rounds in (1, 20))
    torch.testing.assert_close(once.get_parameter("0.weight"), often.get_parameter("0.weight"))
    with torch.no_grad():
        ours, theirs = once.get_parameter("0.weight").abs().amax(1), once.get_parameter("2.weight").abs().amax(0)
    torch.testing.assert_close(ours, theirs)
