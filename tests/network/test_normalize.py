"""Rewrites of the exported graph keep what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from autocompress.network.exporting import export


class Ending(nn.Module):
    """A convolution, then one way of getting rid of space."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.ending == "view":
            return x.reshape(x.shape[0], -1)
        if self.ending == "half":
            return x.reshape(x.shape[0], 2, -1)
        return x.mean(dim=(2, 3), keepdim=self.ending == "keep") if self.ending != "rows" else x.mean(dim=2)


@pytest.mark.parametrize(
    ("ending", "operators"),
    [
        ("view", ["Conv", "Flatten"]),
        ("half", ["Conv", "Reshape"]),
        ("drop", ["Conv", "GlobalAveragePool", "Flatten"]),
        ("keep", ["Conv", "GlobalAveragePool"]),
        ("rows", ["Conv", "ReduceMean"]),
    ],
)
def test_only_what_has_an_equal_is_rewritten_and_outputs_stay(tmp_path: Path, ending: str, operators: list[str]) -> None:
    torch.manual_seed(0)
    model = Ending(ending).eval()
    graph = export(model, torch.randn(1, 2, 6, 5), tmp_path / "model.onnx")
    written = onnx.load(graph.path)
    kept = [node.op_type for node in written.graph.node if node.op_type not in {"Shape", "Gather", "Concat", "Constant"}]
    images = torch.randn(3, 2, 6, 5)
    outputs = ReferenceEvaluator(written).run(None, {"input": images.numpy()})
    assert kept == operators
    assert isinstance(outputs, list)
    np.testing.assert_allclose(outputs[0], model(images).detach().numpy(), atol=1e-5)
