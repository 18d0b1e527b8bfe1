from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import autocompress.tensors.patches
from autocompress.errors import ModelError
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph, Layer
from autocompress.task import Examples, Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.module_weights import fold_factor
from autocompress.tensors.patches import sample_patches
from autocompress.testing import make_layer

if TYPE_CHECKING:
    from tests.conftest import Tiny

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")


# --- moments of the tiny network's inputs, against torch.nn.functional.unfold of what the module's layers see ---


def layer_inputs(model: nn.Module, name: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def unfolded(module: nn.Module, inputs: Tensor) -> Tensor:
    """(groups, n, d), in float64."""
    if isinstance(module, nn.Linear):
        return inputs.double()[None]
    assert isinstance(module, nn.Conv2d)
    assert not isinstance(module.padding, str)
    columns = functional.unfold(inputs.double(), module.kernel_size, 1, module.padding, module.stride)  # (N, C k k, L)
    count, inputs_of_all, places = columns.shape
    grouped = columns.reshape(count, module.groups, inputs_of_all // module.groups, places)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


@pytest.fixture(scope="module")
def images(tiny: Tiny) -> Tensor:
    return torch.from_numpy(tiny.task.sets["calibration"].inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_input_moments(exhaustive: Calibration, tiny: Tiny, images: Tensor, name: str) -> None:
    patches = unfolded(tiny.task.model.get_submodule(name), layer_inputs(tiny.task.model, name, images))
    layer = tiny.graph.layers[name]
    mean, second = exhaustive.input_mean(layer).double(), exhaustive.input_second_moment(layer).double()
    torch.testing.assert_close(mean, patches.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, patches.transpose(1, 2) @ patches / patches.shape[1], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def sampled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Statistics over 24 positions of each image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autocompress.tensors.patches, "POSITIONS", 24)
        calibration = Calibration(tiny.task, tiny.graph, tiny.components, tmp_path_factory.mktemp("sampled"))
        calibration.observe()
    return calibration


@pytest.mark.parametrize("name", LAYERS)
def test_sampled_moments_are_close_to_those_of_all_positions(
    exhaustive: Calibration, sampled: Calibration, tiny: Tiny, name: str
) -> None:
    layer = tiny.graph.layers[name]
    exact, found = exhaustive.input_second_moment(layer), sampled.input_second_moment(layer)
    assert (found - exact).norm() / exact.norm() < 0.15
    fully_covered = name in ("depthwise.0", "pointwise", "head")  # 4 x 4 positions or one
    assert torch.equal(found, exact) == fully_covered


def test_each_batch_is_sampled_at_other_places(sampled: Calibration, tiny: Tiny, images: Tensor) -> None:
    layer = tiny.graph.layers["stem.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autocompress.tensors.patches, "POSITIONS", 24)
        parts = [sample_patches(batch, layer, seed)[0] for seed, batch in enumerate(images.split(32))]
        again = sample_patches(images[:32], layer, 1)[0]
    assert not torch.equal(parts[0], again)
    patches = torch.cat(parts).double()
    expected = patches.T @ patches / len(patches)
    torch.testing.assert_close(sampled.input_second_moment(layer)[0].double(), expected, rtol=1e-4, atol=1e-6)


# --- how sure the moments are ---


@pytest.mark.parametrize("name", LAYERS)
def test_shrinkage_is_the_share_of_the_covariance_that_halves_of_the_images_disagree_on(
    exhaustive: Calibration, tiny: Tiny, images: Tensor, name: str
) -> None:
    patches = unfolded(tiny.task.model.get_submodule(name), layer_inputs(tiny.task.model, name, images)).numpy()
    apart = patches.reshape(len(patches), len(images), -1, patches.shape[2])
    found = exhaustive.input_shrinkage(tiny.graph.layers[name])
    for group, shrinkage in enumerate(found.tolist()):
        halves = [np.cov(apart[group, half::2].reshape(-1, apart.shape[3]).T, bias=True) for half in range(2)]
        mean = (halves[0] + halves[1]) / 2
        distance = np.square(mean - np.eye(len(mean)) * np.trace(mean) / len(mean)).sum()
        chance = np.square((halves[0] - halves[1]) / 2).sum()
        assert shrinkage == pytest.approx(min(1.0, chance / distance), rel=1e-3, abs=1e-6)
    assert 0 < float(found.mean()) < 0.5


def calibrated(tiny: Tiny, count: int, folder: Path) -> Calibration:
    """Statistics of the tiny network on the first images of its calibration set."""
    task = copy.copy(tiny.task)
    given = tiny.task.sets["calibration"]
    task.sets = {**tiny.task.sets, "calibration": Examples(given.inputs[:count], given.targets[:count])}
    calibration = Calibration(task, tiny.graph, tiny.components, folder)
    calibration.observe()
    return calibration


def covariance(calibration: Calibration, layer: Layer) -> Tensor:
    mean = calibration.input_mean(layer)[0]
    return calibration.input_second_moment(layer)[0] - torch.outer(mean, mean)


def test_a_shrunk_covariance_is_closer_to_the_truth(exhaustive: Calibration, tiny: Tiny, tmp_path: Path) -> None:
    head = tiny.graph.layers["head"]
    few = calibrated(tiny, 12, tmp_path)
    raw, truth, share = covariance(few, head), covariance(exhaustive, head), float(few.input_shrinkage(head))
    shrunk = (1 - share) * raw + share * raw.diagonal().mean() * torch.eye(len(raw))
    assert share > 2 * float(exhaustive.input_shrinkage(head))
    assert (shrunk - truth).norm() < 0.95 * (raw - truth).norm()


def test_one_image_says_nothing_about_how_sure_it_is(tiny: Tiny, tmp_path: Path) -> None:
    assert calibrated(tiny, 1, tmp_path).input_shrinkage(tiny.graph.layers["inner.0"]).tolist() == [1.0]


def test_a_channel_reads_the_moments_of_its_own_group(tiny: Tiny) -> None:
    depthwise = tiny.graph.layers["depthwise.0"]
    assert tiny.calibration.input_mean(depthwise).shape == (16, 9)
    assert tiny.calibration.input_second_moment(depthwise).shape == (16, 9, 9)
    assert tiny.calibration.input_second_moment(tiny.graph.layers["inner.0"]).shape == (1, 144, 144)


# --- ranges ---


def test_ranges_are_the_extremes_of_the_activations(tiny: Tiny, images: Tensor) -> None:
    model, layers = tiny.task.model, tiny.graph.layers
    pool = next(op for op in tiny.graph.ops if op.op_type == "GlobalAveragePool")
    with torch.no_grad():
        outer = model.get_submodule("outer")(layer_inputs(model, "outer.0", images))
        pointwise = model.get_submodule("pointwise")(layer_inputs(model, "pointwise", images)).relu()
        logits = model(images)
    expected = {
        "input": images,
        **{layers[name].input: layer_inputs(model, name, images) for name in LAYERS if name != "stem.0"},
        layers["outer.0"].output: outer,
        layers["pointwise"].output: pointwise,
        pool.output: layer_inputs(model, "head", images),
        "output": logits,
    }
    assert set(tiny.calibration.ranges) == set(expected) == set(tiny.graph.tensors)
    for name, grid in tiny.calibration.ranges.items():
        values = expected[name].numpy()
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        assert grid.scale == pytest.approx((high - low) / 255, rel=1e-4)
        assert abs(grid.zero_point + low / grid.scale) <= 0.51


def test_calibration_leaves_no_file_behind(tiny: Tiny) -> None:
    assert not list(tiny.folder.glob("observed*"))


def test_statistics_do_not_reach_into_the_graph(tiny: Tiny) -> None:
    layer = tiny.graph.layers["inner.0"]
    tiny.calibration.stats(layer).weight.zero_()
    assert tiny.graph.initializers[layer.weight].any()


# --- gradients, against finite differences of the loss on the weight as the file has it ---

STEP = 1e-5


def resamples(count: int) -> list[Tensor]:
    """The bootstrap batches of seed 0: 8 of 32 examples."""
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(count, size=32)) for _ in range(8)]


def directions(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def slopes(loss: Callable[[Tensor, Tensor], Tensor], weight: Tensor, direction: Tensor, count: int) -> list[float]:
    """Central differences of loss(weight, indices of examples) along a direction, for each resample."""
    steps = (weight + STEP * direction, weight - STEP * direction)
    with torch.no_grad():
        ends = [[float(loss(moved, chosen)) for moved in steps] for chosen in resamples(count)]
    return [(high - low) / (2 * STEP) for high, low in ends]


def assert_slopes(found: Tensor, expected: list[float]) -> None:
    """Equal to a thousandth of the steepest: rounding to float32 moves a few activations across a kink."""
    steepest = max(abs(slope) for slope in expected)
    assert steepest > 1e-3
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-3 * steepest)


def folded_forward(weights: dict[str, Tensor], biases: dict[str, Tensor], x: Tensor) -> Tensor:
    """The tiny network as the file computes it: without batch norm."""

    def conv(name: str, inputs: Tensor, **options: int) -> Tensor:
        return functional.conv2d(inputs, weights[name], biases[name], **options)

    x = conv("stem.0", x, padding=1).relu()
    x = (x + conv("outer.0", conv("inner.0", x, padding=1).relu(), padding=1)).relu()
    x = conv("depthwise.0", x, padding=1, stride=2, groups=16).clamp(0, 6)
    x = conv("pointwise", x).relu()
    return functional.linear(x.mean(dim=(2, 3)), weights["head"], biases["head"])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_slopes_of_the_loss(tiny: Tiny, images: Tensor, name: str) -> None:
    targets = torch.from_numpy(tiny.task.sets["calibration"].targets)
    values = {key: torch.from_numpy(array).double() for key, array in tiny.graph.initializers.items()}
    weights = {layer.name: values[layer.weight] for layer in tiny.graph.layers.values()}
    biases = {layer.name: values[str(layer.bias)] for layer in tiny.graph.layers.values()}

    def loss(weight: Tensor, chosen: Tensor) -> Tensor:
        outputs = folded_forward({**weights, name: weight}, biases, images[chosen].double())
        return functional.cross_entropy(outputs, targets[chosen])

    samples = tiny.calibration.gradient_samples(tiny.graph.layers[name]).double()
    assert samples.shape == (8, *weights[name].shape)
    for direction in directions(tuple(weights[name].shape)):
        expected = slopes(loss, weights[name], direction, len(images))
        assert_slopes((samples * direction).flatten(1).sum(1), expected)


def test_frozen_layers_have_gradients_and_stay_frozen(tiny: Tiny, tiny_task: Task, tmp_path: Path) -> None:
    tiny_task.model.requires_grad_(False)
    tiny_task.model.get_submodule("head").requires_grad_(True)
    calibration = Calibration(tiny_task, tiny.graph, tiny.components, tmp_path)
    for name, layer in tiny.graph.layers.items():
        assert torch.equal(calibration.gradient_samples(layer), tiny.calibration.gradient_samples(tiny.graph.layers[name]))
    trained = [name for name, parameter in tiny_task.model.named_parameters() if parameter.requires_grad]
    assert trained == ["head.weight", "head.bias"]


def test_gradients_leave_the_model_alone(tiny: Tiny) -> None:
    _ = tiny.calibration.gradient_samples(tiny.graph.layers["head"])
    assert not tiny.task.model.training
    assert all(parameter.grad is None for parameter in tiny.task.model.parameters())


class Odd(nn.Module):
    """A dead batch norm channel, a one-dimensional convolution, and a linear layer on sequences, whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, stride=(2, 1), dilation=(1, 2), bias=False), nn.BatchNorm2d(4)
        self.second, self.third = nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 3)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.0, 0.5, -2.0, 1.0]))
            self.norm.bias.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu().flatten(2)
        y = self.second(y).relu()
        outputs: Tensor = self.third(y.transpose(1, 2)).mean(dim=1)
        return outputs


@pytest.fixture(scope="module")
def odd(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, BaseGraph, Calibration]:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("odd")
    images, labels = (
        torch.from_numpy(part) for part in (tiny.task.sets["report"].inputs, tiny.task.sets["report"].targets % 3)
    )
    calibration, search, report = ([(images[at : at + 64], labels[at : at + 64])] for at in (0, 64, 128))
    task = Task(Odd(), images[:1], calibration, search, report, name="odd")
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    return task, graph, Calibration(task, graph, tiny.components, folder)


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_gradients_of_uncommon_layers(odd: tuple[Task, BaseGraph, Calibration], name: str) -> None:
    task, graph, calibration = odd
    layer = graph.layers[name]
    factor = torch.tensor([torch.inf, 0.5, -2.0, 1.0]).reshape(-1, 1, 1, 1) if name == "first" else torch.tensor(1.0)
    model = copy.deepcopy(task.model).double()
    inputs, targets = (torch.from_numpy(part) for part in (task.sets["calibration"].inputs, task.sets["calibration"].targets))
    module = model.get_submodule(name)
    own = module.get_parameter("weight").detach().clone()

    def loss(weight: Tensor, chosen: Tensor) -> Tensor:
        module.weight = nn.Parameter(weight)
        return functional.cross_entropy(model(inputs[chosen].double()), targets[chosen])

    samples = calibration.gradient_samples(layer).double()
    assert samples.shape == (8, *layer.shape)
    for direction in directions(tuple(own.shape)):
        expected = slopes(loss, own, direction / (factor * norm_scale(model, name)), len(inputs))
        along = direction.T if name == "third" else direction
        assert_slopes((samples * along).flatten(1).sum(1), expected)
    if name == "first":
        assert not samples[:, 0].any()


def norm_scale(model: nn.Module, name: str) -> Tensor:
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    spread = (norm.running_var + norm.eps).sqrt().reshape(-1, 1, 1, 1)
    return 1 / spread if name == "first" else torch.ones(1)


def test_moments_of_sequences(odd: tuple[Task, BaseGraph, Calibration]) -> None:
    task, graph, calibration = odd
    inputs = layer_inputs(task.model, "third", torch.from_numpy(task.sets["calibration"].inputs)).double().flatten(0, 1)
    torch.testing.assert_close(
        calibration.input_mean(graph.layers["third"]).double(), inputs.mean(0)[None], rtol=1e-4, atol=1e-6
    )
    second = calibration.input_second_moment(graph.layers["third"]).double()
    torch.testing.assert_close(second, (inputs.T @ inputs / len(inputs))[None], rtol=1e-4, atol=1e-6)


def test_a_weight_that_is_not_the_files_is_refused() -> None:
    layer = make_layer((4, 2, 3, 3))
    with pytest.raises(ModelError, match="layer layer: module and exported weight differ in shape"):
        fold_factor(layer, torch.zeros(4, 2, 3, 3), nn.Conv2d(2, 5, 3))
    with pytest.raises(ModelError, match="layer layer"):
        fold_factor(layer, torch.zeros(4, 2, 3, 3), nn.ReLU())


def test_fold_factor_of_each_channel() -> None:
    module = nn.Conv2d(2, 4, 3)
    factors = torch.tensor([2.0, -0.5, 0.0, 1.0])
    folded = module.weight.detach() * factors.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(fold_factor(make_layer((4, 2, 3, 3)), folded, module), factors)


# --- an embedding, which multiplies nothing ---


class Words(nn.Module):
    """Classifies sequences of five token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.tokens(ids).mean(1))
        return outputs


def test_statistics_of_an_embedding(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids, labels = torch.randint(0, 19, (60, 5)), torch.arange(60) % 3  # row 19 is never looked up
    sets = [[(ids[start : start + 20], labels[start : start + 20])] for start in (0, 20, 40)]
    task = Task(Words(), ids[:1], *sets)
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    calibration = Calibration(task, graph, tiny.components, tmp_path)
    stats = calibration.stats(graph.layers["tokens"])
    assert torch.equal(stats.input_mean, torch.zeros(1, 8))
    assert torch.equal(stats.input_second_moment, torch.eye(8)[None])
    assert stats.gradient_samples.shape == (8, 20, 8)
    assert stats.gradient.abs().sum(1)[:19].all()
    assert not stats.gradient[19].any()
    assert "input" not in calibration.ranges
    head = calibration.stats(graph.layers["head"])
    with torch.no_grad():
        pooled = task.model.get_submodule("tokens")(ids[:20]).mean(1)
    torch.testing.assert_close(head.input_mean[0], pooled.mean(0))


class Masked(nn.Module):
    """Attention over eight places, four of which are masked with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.head = nn.Linear(64, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]).repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head((self.scores(x.flatten(1)) + self.mask).softmax(1))
        return outputs


def test_what_is_infinite_has_no_part_in_a_range(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [[(torch.randn(40, 1, 8, 8), torch.arange(40) % 3)] for _ in range(3)]
    task = Task(Masked(), torch.zeros(1, 1, 8, 8), *parts)
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    calibration = Calibration(task, graph, tiny.components, tmp_path)
    scores = task.model.scores(torch.from_numpy(task.sets["calibration"].inputs).flatten(1)).detach()[:, ::2]
    found = [grid for grid in calibration.ranges.values() if grid.zero_point]
    ends = [(-grid.zero_point * grid.scale, (255 - grid.zero_point) * grid.scale) for grid in found]
    assert np.isfinite(ends).all()
    assert any(np.allclose(end, (float(scores.min()), float(scores.max())), atol=0.03) for end in ends)
