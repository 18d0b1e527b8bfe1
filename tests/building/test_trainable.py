"""A finalist trains in float and computes as its file will; what comes out is a file again."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.building.recovery import Recoverable
from autocompress.building.twin import twin_outputs
from autocompress.display.progress import Progress
from autocompress.errors import ModelError
from autocompress.measuring.runner import load_session
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.task import Task
from autocompress.trials.trial import Bench

SPARSE_INT4 = LayerPolicy("int4", 4, "sparse", 0.5)
INT8 = LayerPolicy("int8", 8)


@pytest.fixture
def policy(bench: Bench) -> Policy:
    """INT8, one sparse INT4 layer, one float layer, and channels cut."""
    layers = dict.fromkeys(bench.graph.layers, INT8) | {"pointwise": SPARSE_INT4}
    del layers["head"]
    return Policy(layers, {"inner.0": ChannelPolicy("sparse", 0.5)})


@pytest.fixture
def candidate(bench: Bench, tiny_task: Task, policy: Policy, tmp_path: Path) -> Recoverable:
    own = replace(bench, task=tiny_task)
    return own.recoverable(policy, tmp_path, 0, Progress(io.StringIO()))


def test_the_module_computes_with_masked_weights_on_their_grid(candidate: Recoverable) -> None:
    module = candidate.trainable().module.get_submodule("pointwise")
    weight = module.weight.detach()
    mask = candidate.compressed.layers["pointwise"].mask
    assert mask is not None
    assert not weight[~mask].any()
    for channel in weight.flatten(1):
        assert len(channel.unique()) <= 16


def test_gradients_pass_the_rounding_and_stop_at_the_mask(candidate: Recoverable) -> None:
    module = candidate.trainable()
    module(candidate.task.example_input).square().sum().backward()
    weights = dict(module.named_parameters())
    original = weights["module.pointwise.parametrizations.weight.original"]
    mask = candidate.compressed.layers["pointwise"].mask
    assert original.grad is not None
    assert mask is not None
    assert not original.grad[~mask].any()
    assert original.grad[mask].any()


def test_training_updates_folded_norms(candidate: Recoverable) -> None:
    module = candidate.trainable().train()
    before = module.module.get_submodule("stem.1").running_mean.clone()  # type: ignore[union-attr, operator]
    module(torch.from_numpy(candidate.task.sets["calibration"].inputs))
    assert not torch.equal(before, module.module.get_submodule("stem.1").running_mean)  # type: ignore[arg-type]


def test_rebuilding_an_untrained_module_gives_the_candidate_again(candidate: Recoverable, bench: Bench, tmp_path: Path) -> None:
    """Up to the repair of moments, which is exact only for the statistics at hand."""
    rebuilt = candidate.rebuild(candidate.trainable())
    inputs = candidate.task.sets["calibration"].inputs
    outputs = []
    for index, compressed in enumerate((candidate.compressed, rebuilt)):
        path = bench.lower(candidate.policy, compressed, tmp_path / f"{index}.onnx").artifact.path
        outputs.append(load_session(bench.components.target, path, 1)([inputs])[0])
    error = np.square(outputs[0] - outputs[1]).sum() / np.square(outputs[0]).sum()
    assert error < 0.02
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() > 0.95


def test_a_rebuilt_file_keeps_masks_channels_and_agrees_with_its_twin(
    candidate: Recoverable, bench: Bench, tmp_path: Path
) -> None:
    module = candidate.trainable()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    rebuilt = replace(candidate, compressed=candidate.rebuild(module))
    mask = candidate.compressed.layers["pointwise"].mask
    kept = rebuilt.compressed.layers["pointwise"].mask
    assert mask is not None
    assert kept is not None
    assert torch.equal(mask, kept)
    assert set(rebuilt.compressed.layers) == set(bench.graph.layers)
    path = bench.lower(candidate.policy, rebuilt.compressed, tmp_path / "rebuilt.onnx").artifact.path
    inputs = candidate.task.sets["calibration"].inputs
    file = load_session(bench.components.target, path, 1)([inputs])[0]
    twin = twin_outputs(rebuilt.twin(), inputs)
    assert (file.argmax(1) == twin.argmax(1)).mean() > 0.97


def test_a_module_of_another_wiring_is_refused(candidate: Recoverable) -> None:
    module = candidate.trainable()
    module.module.register_module("depthwise", torch.nn.Identity())
    with pytest.raises(ModelError, match=r"^the fine-tuned module exports to another graph"):
        candidate.rebuild(module)
