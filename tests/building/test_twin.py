from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.accuracy.evaluation import snr_db
from autocompress.building.candidate import Candidate, build
from autocompress.building.twin import module_twin, twin_outputs
from autocompress.components import QuantizedTensor
from autocompress.measuring.device import Device
from autocompress.network.channels import ChannelGroups
from autocompress.network.exporting import export
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
PRUNED = LayerPolicy(pruner="sparse", sparsity=0.5)
HALF = ChannelPolicy("sparse", 0.5)
CUTS = {
    "inner": {"inner.0": HALF},
    "residual": {"depthwise.0": HALF},
    "all": {"inner.0": HALF, "depthwise.0": HALF, "pointwise": HALF},
}
FLOAT_POLICIES = {
    "untouched": Policy(),
    "pruned": Policy(dict.fromkeys(LAYERS, PRUNED)),
    **{f"cut_{name}": Policy(channels=cut) for name, cut in CUTS.items()},
    "cut_and_pruned": Policy(dict.fromkeys(LAYERS, PRUNED), CUTS["all"]),
}
INTEGER_POLICIES = {
    "int8": Policy(dict.fromkeys(LAYERS, INT8)),
    "int4": Policy(dict.fromkeys(LAYERS, INT4)),
    "sparse_int4": Policy(dict.fromkeys(LAYERS, LayerPolicy("int4", 4, "sparse", 0.7))),
    "mixed": Policy({"stem.0": INT8, "outer.0": INT4, "pointwise": PRUNED, "head": INT8}),
    "int8_cut": Policy(dict.fromkeys(LAYERS, INT8), CUTS["all"]),
}


def agreement(tiny: Tiny, groups: ChannelGroups, candidate: Candidate, device: Device, inputs: Path) -> float:
    """Signal-to-noise ratio of the twin against the file as the runtime computes it, in decibels."""
    capabilities = tiny.components.target.capabilities()
    twin = module_twin(tiny.graph, tiny.task.model, groups.groups, candidate.policy, candidate.compressed, capabilities)
    outputs = device.outputs(candidate.artifact.path, inputs, 0, 128, 64)
    return snr_db(outputs, twin_outputs(twin, np.load(inputs)))


@pytest.mark.parametrize("name", FLOAT_POLICIES)
def test_twin_equals_a_float_file(
    tiny: Tiny,
    groups: ChannelGroups,
    device: Device,
    calibration_file: Path,
    build_tiny: Callable[[Policy], Candidate],
    name: str,
) -> None:
    assert agreement(tiny, groups, build_tiny(FLOAT_POLICIES[name]), device, calibration_file) > 60


@pytest.mark.parametrize("name", INTEGER_POLICIES)
def test_twin_follows_an_integer_file(
    tiny: Tiny,
    groups: ChannelGroups,
    device: Device,
    calibration_file: Path,
    build_tiny: Callable[[Policy], Candidate],
    name: str,
) -> None:
    assert agreement(tiny, groups, build_tiny(INTEGER_POLICIES[name]), device, calibration_file) > 20


def test_twin_tells_one_policy_from_another(
    tiny: Tiny, groups: ChannelGroups, device: Device, calibration_file: Path, build_tiny: Callable[[Policy], Candidate]
) -> None:
    """The twin of the FP32 model is no twin of a pruned file, so agreement means something."""
    pruned = build_tiny(FLOAT_POLICIES["pruned"])
    outputs = device.outputs(pruned.artifact.path, calibration_file, 0, 128, 64)
    assert snr_db(outputs, twin_outputs(tiny.task.model, np.load(calibration_file))) < 20


def test_twin_has_the_candidates_weights_and_the_model_keeps_its_own(
    tiny: Tiny, groups: ChannelGroups, build_tiny: Callable[[Policy], Candidate]
) -> None:
    before = {key: value.clone() for key, value in tiny.task.model.state_dict().items()}
    candidate = build_tiny(INTEGER_POLICIES["sparse_int4"])
    capabilities = tiny.components.target.capabilities()
    twin = module_twin(tiny.graph, tiny.task.model, groups.groups, candidate.policy, candidate.compressed, capabilities)
    for name, layer in candidate.compressed.layers.items():
        assert layer.mask is not None
        assert torch.equal(twin.get_submodule(name).get_parameter("weight") != 0, layer.dense() != 0)
    pointwise = candidate.compressed.layers["pointwise"]  # no batch norm behind it: the file's own values
    torch.testing.assert_close(twin.get_submodule("pointwise").get_parameter("weight").detach(), pointwise.dense())
    assert isinstance(pointwise.weight, QuantizedTensor)
    assert pointwise.bias is not None
    step = candidate.compressed.ranges[tiny.graph.layers["pointwise"].input].scale * pointwise.weight.scale
    on_grid = (pointwise.bias / step).round() * step  # as the kernel adds it to its sum
    torch.testing.assert_close(twin.get_submodule("pointwise").get_parameter("bias").detach(), on_grid)
    assert all(torch.equal(before[key], value) for key, value in tiny.task.model.state_dict().items())


def test_a_layer_of_the_twin_reads_what_the_integer_layer_reads(
    tiny: Tiny, groups: ChannelGroups, calibration_file: Path, build_tiny: Callable[[Policy], Candidate]
) -> None:
    candidate = build_tiny(Policy({"inner.0": INT8}))
    capabilities = tiny.components.target.capabilities()
    twin = module_twin(tiny.graph, tiny.task.model, groups.groups, candidate.policy, candidate.compressed, capabilities)
    seen: dict[str, Tensor] = {}
    for name in LAYERS:
        twin.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    twin_outputs(twin, np.load(calibration_file))
    for name, quantized in {"inner.0": True, "outer.0": True, "depthwise.0": False, "head": False}.items():
        grid = tiny.calibration.ranges[tiny.graph.layers[name].input]
        codes = seen[name] / grid.scale + grid.zero_point
        assert bool(((codes - codes.round()).abs() < 1e-3).all()) == quantized, name
        assert not quantized or 0 <= codes.min() < codes.max() <= 255.001


# --- folded weights that cannot simply be divided by what batch norm multiplied ---


class Odd(nn.Module):
    """Batch norm that switches a channel off and turns one around, and a linear layer on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 3, bias=False)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.0, -1.5, 0.5, 2.0, 1.0, -0.2, 0.7, 1.0]))
            self.norm.bias.copy_(torch.linspace(-0.5, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu().flatten(2).transpose(1, 2)
        outputs: Tensor = self.third(self.second(y).relu()).mean(dim=1)
        return outputs


@pytest.mark.parametrize(("decision", "least"), [(PRUNED, 60), (INT8, 20)])
def test_twin_of_switched_off_channels_and_transposed_weights(
    tiny: Tiny, device: Device, calibration_file: Path, tmp_path: Path, decision: LayerPolicy, least: float
) -> None:
    torch.manual_seed(1)
    sets = tiny.task.sets
    parts = ([(torch.from_numpy(sets[name].inputs), torch.from_numpy(sets[name].targets % 3))] for name in sets)
    calibration_set, search, report = parts
    task = Task(Odd(), tiny.task.example_input, calibration_set, search, report)
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    capabilities = tiny.components.target.capabilities()
    database = LayerDatabase(graph, Calibration(task, graph, tiny.components, tmp_path), tiny.components, {})
    policy = Policy(dict.fromkeys(graph.layers, decision))
    compressed = database.compress(policy)
    candidate = build(graph, policy, compressed, capabilities, tmp_path / "candidate.onnx")
    twin = module_twin(graph, task.model, {}, policy, compressed, capabilities)
    outputs = device.outputs(candidate.artifact.path, calibration_file, 0, 128, 64)
    found = twin_outputs(twin, np.load(calibration_file))
    assert np.isfinite(found).all()
    assert snr_db(outputs, found) > least
