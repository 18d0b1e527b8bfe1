"""Fine-tuning: gradients of depthwise convolutions, and what a training does to a pruned network."""

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autocompress_plugins.finetune import FineTune
from autocompress_plugins.finetune.depthwise import FastDepthwise
from torch import nn
from torch.nn import functional

from autocompress.building.recovery import Recoverable
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, DataError
from autocompress.measuring.runner import load_session
from autocompress.policy import LayerPolicy, Policy
from autocompress.task import Task
from autocompress.testing import RecoveryContract
from autocompress.trials.trial import Bench


class TestFineTune(RecoveryContract):
    @pytest.fixture
    def recovery(self) -> FineTune:
        return FineTune()


CONVOLUTIONS = [(8, 12, 3, 1, 1), (8, 13, 3, 2, 1), (8, 12, 5, 2, 2), (8, 11, 5, 1, 0), (4, 7, 3, 2, 0), (8, 9, 3, 1, 2)]
"""Channels, side, window, stride, padding."""


@pytest.mark.parametrize(("channels", "side", "window", "stride", "padding"), [*CONVOLUTIONS, (8, 20, 3, 3, 3)])
def test_the_fast_gradient_is_pytorchs(channels: int, side: int, window: int, stride: int, padding: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_()
        for shape in ((2, channels, side, side), (channels, 1, window, window), (channels,))
    )

    def gradients() -> list[torch.Tensor]:
        outputs = functional.conv2d(inputs, weight, bias, stride, padding, groups=channels)
        (outputs * torch.arange(outputs.numel()).reshape(outputs.shape).sin()).sum().backward()  # type: ignore[no-untyped-call]
        found = [outputs.detach(), *(part.grad for part in (inputs, weight, bias) if part.grad is not None)]
        for part in (inputs, weight, bias):
            part.grad = None
        return found

    expected = gradients()
    with FastDepthwise():
        found = gradients()
    assert len(found) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # the weight's gradient may be computed in float32


def test_only_depthwise_convolutions_are_replaced() -> None:
    inputs = torch.randn(1, 4, 6, 6, requires_grad=True)
    for module in (nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4, dilation=2)):
        with FastDepthwise():
            outputs = module(inputs)
        assert "Convolution" in str(outputs.grad_fn)


SPARSE = LayerPolicy("int4", 4, "sparse", 0.7)


@pytest.fixture
def candidate(bench: Bench, tiny_task: Task, tmp_path: Path) -> Recoverable:
    """Most of the tiny network's weights removed, the rest at 4 bits."""
    tiny_task.train = tiny_task.sets["calibration"]
    policy = Policy(dict.fromkeys(bench.graph.layers, SPARSE))
    return replace(bench, task=tiny_task).recoverable(policy, tmp_path, 0, Progress(io.StringIO()))


def accuracy(bench: Bench, candidate: Recoverable, tmp_path: Path) -> float:
    path = bench.lower(candidate.policy, candidate.compressed, tmp_path / "candidate.onnx").artifact.path
    examples = candidate.task.sets["search"]
    outputs = load_session(bench.components.target, path, 1)([examples.inputs])[0]
    return float((outputs.argmax(1) == examples.targets).mean())


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_training_brings_accuracy_back_and_keeps_the_masks(
    bench: Bench, candidate: Recoverable, tmp_path: Path, distill: float
) -> None:
    """From the labels alone as well as from the teacher alone."""
    recipe = FineTune(epochs=40, batch_size=32, distill=distill, learning_rate=3e-3, patience=40)
    tuned = replace(candidate, compressed=recipe.recover(candidate))
    before, after = (accuracy(bench, one, tmp_path) for one in (candidate, tuned))
    assert after > before + 0.03
    for name, layer in candidate.compressed.layers.items():
        mask = tuned.compressed.layers[name].mask
        assert layer.mask is not None
        assert mask is not None
        assert torch.equal(layer.mask, mask)
        assert not tuned.compressed.layers[name].dense()[~mask].any()


def test_the_same_seed_gives_the_same_file(candidate: Recoverable) -> None:
    recipe = FineTune(epochs=2, batch_size=32)
    first, second = (recipe.recover(candidate) for _ in range(2))
    for name, layer in first.layers.items():
        assert torch.equal(layer.dense(), second.layers[name].dense())


def test_time_is_kept(candidate: Recoverable) -> None:
    """One step more than the time allows at most, however many epochs were asked for."""
    FineTune(epochs=1_000_000, seconds=0.2, patience=1_000_000).recover(candidate)


def test_another_teacher_is_followed(candidate: Recoverable) -> None:
    """One that always says class 3 is learned from."""
    recipe = FineTune(
        epochs=30, batch_size=32, distill=1.0, teacher=f"{__name__}:always_three", learning_rate=1e-2, patience=30
    )
    tuned = replace(candidate, compressed=recipe.recover(candidate))
    outputs = tuned.twin()(torch.from_numpy(candidate.task.sets["search"].inputs))
    assert (outputs.argmax(1) == 3).float().mean() > 0.9


class AlwaysThree(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.one_hot(torch.full((len(inputs),), 3), 10) * 10.0


def always_three() -> nn.Module:
    return AlwaysThree()


def test_it_stops_within_what_is_left_of_the_searchs_time(candidate: Recoverable) -> None:
    start = time.monotonic()
    FineTune(seconds=600.0, epochs=100_000, patience=100_000).recover(replace(candidate, seconds=0.5))
    assert time.monotonic() - start < 60.0  # half a second of training, then the export


def test_without_training_examples_it_says_what_to_do(candidate: Recoverable) -> None:
    candidate.task.train = None
    with pytest.raises(DataError, match=r"no training examples; set data\.train_size"):
        FineTune().recover(candidate)


@pytest.mark.parametrize(
    ("field", "value"), [("seconds", 0.0), ("epochs", 0), ("distill", 1.5), ("batch_size", 1), ("temperature", -1.0)]
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"recover\.finetune\.{field}="):
        FineTune(**{field: value})  # type: ignore[arg-type]


def test_images_are_mirrored_and_moved_only_when_asked(candidate: Recoverable) -> None:
    """Augmentation keeps shapes, and without it batches are the examples as they are."""
    from autocompress_plugins.finetune.training import _Lesson

    inputs = torch.from_numpy(candidate.task.sets["calibration"].inputs[:8])
    plain = _Lesson(candidate.task.model, candidate, FineTune())._augmented(inputs)
    moved = _Lesson(candidate.task.model, candidate, FineTune(flip=True, shift=2))._augmented(inputs)
    assert torch.equal(plain, inputs)
    assert moved.shape == inputs.shape
    assert not np.array_equal(moved.numpy(), inputs.numpy())
