"""Linear layers on sequences become one operator with a bias, and the graph computes what it did."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from autocompress.building.twin import verify_groups
from autocompress.network.channels import find_groups
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph

if TYPE_CHECKING:
    from tests.conftest import Tiny


class Block(nn.Module):
    """Two layers that read the same sequence, one after them, one without a bias, and one on a four-dimensional tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 12), nn.Linear(8, 12)
        self.after, self.plain, self.deep = nn.Linear(12, 6), nn.Linear(6, 6, bias=False), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(torch.relu(self.after(self.left(x) * self.right(x))))  # (N, 5, 6)
        outputs: Tensor = self.deep(y.reshape(-1, 5, 2, 3))
        return outputs


def operators(graph: BaseGraph) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph.data).graph.node)


def computed(graph: BaseGraph, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def test_a_product_and_its_bias_are_one_layer_at_every_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    graph = export(model, torch.randn(1, 5, 8), tmp_path / "fp32.onnx")
    assert {name: (layer.bias, layer.shape) for name, layer in graph.layers.items()} == {
        "left": ("left.bias", (8, 12)),
        "right": ("right.bias", (8, 12)),
        "after": ("after.bias", (12, 6)),
        "plain": (None, (6, 6)),
        "deep": ("deep.bias", (3, 5)),
    }
    np.testing.assert_array_equal(graph.initializers["deep.bias"], model.deep.bias.detach().numpy())
    for batch in (1, 3):
        inputs = torch.randn(batch, 5, 8)
        with torch.no_grad():
            torch.testing.assert_close(computed(graph, inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_layers_that_read_the_same_tensor_read_it_flattened_once(tmp_path: Path) -> None:
    graph = export(Block(), torch.randn(1, 5, 8), tmp_path / "fp32.onnx")
    assert graph.layers["left"].input == graph.layers["right"].input
    assert operators(graph) == {"Gemm": 4, "MatMul": 1, "Flatten": 3, "Reshape": 5, "Mul": 1, "Relu": 1}


def test_positions_count_in_the_work_of_a_layer(tmp_path: Path) -> None:
    graph = export(Block(), torch.randn(1, 5, 8), tmp_path / "fp32.onnx")
    macs = {name: layer.macs for name, layer in graph.layers.items()}
    assert macs == {"left": 5 * 96, "right": 5 * 96, "after": 5 * 72, "plain": 5 * 36, "deep": 5 * 2 * 15}


class Odd(nn.Module):
    """Sums that are no bias of a layer: read twice, of a full matrix, of another tensor, and the model's output."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.full, self.other, self.last = (nn.Linear(8, 8, bias=False) for _ in range(4))
        self.row, self.table = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        twice = self.twice(x)
        outputs: Tensor = self.last(self.full(twice + self.row) + self.table + self.other(twice) + twice)
        return outputs


def test_other_sums_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    graph = export(model, torch.randn(1, 5, 8), tmp_path / "fp32.onnx")
    assert operators(graph) == {"MatMul": 4, "Add": 4}
    inputs = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(computed(graph, inputs), model(inputs), rtol=1e-4, atol=1e-5)


class Widening(nn.Module):
    """Two layers on a sequence with more channels between them, which nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = (x + self.down(nn.functional.gelu(self.up(x)))).mean(1)
        return outputs


def test_channels_inside_a_sequence_can_be_cut(tiny: Tiny, tmp_path: Path) -> None:
    """The shape that takes the axes apart again holds their number."""
    torch.manual_seed(0)
    model, example = Widening().eval(), torch.randn(1, 5, 8)
    graph = export(model, example, tmp_path / "fp32.onnx")
    found = find_groups(graph, model, example, multiple=8)
    verified = verify_groups(graph, model, found, example, tiny.components.target, tmp_path)
    assert {name: group.size for name, group in verified.groups.items()} == {"up": 24}
