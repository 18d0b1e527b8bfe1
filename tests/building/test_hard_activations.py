"""Hard sigmoid and hard swish in integers: the runtime has no kernel for them, so the file writes them as sums and products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from autocompress_plugins.global_range import GlobalRange
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.accuracy.evaluation import snr_db
from autocompress.building.candidate import Candidate, build
from autocompress.measuring.device import Device
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

INT8 = LayerPolicy("int8", 8)


class Gated(nn.Module):
    """A hard swish and a squeeze-excite block, with values far beyond both corners."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last, self.head = nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 10)
        nn.init.normal_(self.stem.weight, std=4.0)
        nn.init.normal_(self.squeeze.weight, std=2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.stem(x))
        x = x * nn.functional.hardsigmoid(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))
        outputs: Tensor = self.head(nn.functional.hardswish(self.last(x)).mean(dim=(2, 3)))
        return outputs


@pytest.fixture(scope="module")
def gated(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, BaseGraph]:
    torch.manual_seed(0)
    sets = tiny.task.sets
    task = Task(Gated(), tiny.task.example_input, sets["calibration"], sets["search"], sets["report"])
    return task, export(task.model, task.example_input, tmp_path_factory.mktemp("gated") / "fp32.onnx")


@pytest.fixture
def make(tiny: Tiny, gated: tuple[Task, BaseGraph], tmp_path: Path) -> Callable[..., Candidate]:
    def built(policy: Policy, **parts: Any) -> Candidate:
        task, graph = gated
        components = replace(tiny.components, **parts)
        database = LayerDatabase(graph, Calibration(task, graph, components, tmp_path), components, {})
        capabilities = components.target.capabilities()
        return build(graph, policy, database.compress(policy), capabilities, tmp_path / "file.onnx")

    return built


def runs(device: Device, path: Path, examples: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs with the optimizer and without."""
    fast, exact = (device.outputs(path, examples, 0, 48, 1, optimize=optimize) for optimize in (True, False))
    return fast, exact


def test_everything_between_integer_layers_is_integer_and_right(
    gated: tuple[Task, BaseGraph], make: Callable[..., Candidate], device: Device, calibration_file: Path
) -> None:
    graph = gated[1]
    types = {op.name: op.op_type for op in graph.ops}
    assert sorted(types.values()) == [
        "Flatten",
        "GlobalAveragePool",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "HardSwish",
        "Mul",
    ]
    candidate = make(Policy(dict.fromkeys(graph.layers, INT8)))
    found = device.integer_nodes(candidate.artifact.path, calibration_file)
    assert found >= {name for name, op_type in types.items() if op_type != "Flatten"} | {x.node for x in graph.layers.values()}
    fast, exact = runs(device, candidate.artifact.path, calibration_file)
    assert snr_db(exact, fast) > 40  # the optimized file computes what its graph says
    reference = device.outputs(graph.path, calibration_file, 0, 48, 1)
    assert snr_db(reference, exact) > 25  # and its graph says what the FP32 file computes


@pytest.mark.parametrize("op_type", ["HardSwish", "HardSigmoid"])
def test_they_stay_float_where_the_policy_says_so(
    gated: tuple[Task, BaseGraph], make: Callable[..., Candidate], device: Device, calibration_file: Path, op_type: str
) -> None:
    graph = gated[1]
    chosen = {op.name for op in graph.ops if op.op_type == op_type}
    candidate = make(Policy(dict.fromkeys(graph.layers, INT8), ops=dict.fromkeys(chosen, "float")))
    assert not chosen & device.integer_nodes(candidate.artifact.path, calibration_file)
    fast, exact = runs(device, candidate.artifact.path, calibration_file)
    assert snr_db(exact, fast) > 40


def test_one_range_for_all_tensors_does_not_lift_a_gate_above_one(
    gated: tuple[Task, BaseGraph], make: Callable[..., Candidate], device: Device, calibration_file: Path
) -> None:
    """A grid that ends far above 1 would not cut the sum where a hard sigmoid does."""
    graph = gated[1]
    candidate = make(Policy(dict.fromkeys(graph.layers, INT8)), observer=GlobalRange())
    (gate,) = [op.output for op in graph.ops if op.op_type == "HardSigmoid"]
    wide = [grid for name, grid in candidate.compressed.ranges.items() if name != gate]
    assert min(grid.scale * 255 for grid in wide) > 2
    assert candidate.compressed.ranges[gate].scale * 255 == pytest.approx(1.0)
    reference, exact = (
        device.outputs(graph.path, calibration_file, 0, 48, 1),
        runs(device, candidate.artifact.path, calibration_file)[1],
    )
    assert snr_db(reference, exact) > 5
