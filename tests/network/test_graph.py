from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.network.onnx_file import save

if TYPE_CHECKING:
    from tests.conftest import Tiny

IMAGE = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)


def outputs(graph: BaseGraph, inputs: Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
    array: NDArray[np.float32] = session.run(None, {"input": inputs.numpy()})[0]
    return array


def assert_computes(graph: BaseGraph, model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(outputs(graph, inputs), model(inputs).numpy(), rtol=1e-4, atol=1e-4)


# --- layers, by hand: 8 x 8 images; the depthwise convolution halves both sides ---


def test_layers_have_kind_shape_and_macs_of_the_architecture(tiny: Tiny) -> None:
    found = {name: (layer.kind, layer.shape, layer.groups, layer.macs) for name, layer in tiny.graph.layers.items()}
    assert found == {
        "stem.0": ("conv2d", (16, 1, 3, 3), 1, 16 * 1 * 9 * 8 * 8),
        "inner.0": ("conv2d", (32, 16, 3, 3), 1, 32 * 16 * 9 * 8 * 8),
        "outer.0": ("conv2d", (16, 32, 3, 3), 1, 16 * 32 * 9 * 8 * 8),
        "depthwise.0": ("depthwise", (16, 1, 3, 3), 16, 16 * 9 * 4 * 4),
        "pointwise": ("conv2d", (32, 16, 1, 1), 1, 32 * 16 * 4 * 4),
        "head": ("linear", (10, 32), 1, 10 * 32),
    }
    assert [layer.parameters for layer in tiny.graph.layers.values()] == [144, 4608, 4608, 144, 512, 320]
    assert [layer.channels for layer in tiny.graph.layers.values()] == [16, 32, 16, 16, 32, 10]


def test_geometry_of_convolutions(tiny: Tiny) -> None:
    found = {name: (layer.strides, layer.pads, layer.dilations) for name, layer in tiny.graph.layers.items()}
    same = ((1, 1), (1, 1, 1, 1), (1, 1))
    assert found == {
        "stem.0": same,
        "inner.0": same,
        "outer.0": same,
        "depthwise.0": ((2, 2), (1, 1, 1, 1), (1, 1)),
        "pointwise": ((1, 1), (0, 0, 0, 0), (1, 1)),
        "head": ((), (), ()),
    }


def test_tensors_connect_the_layers(tiny: Tiny) -> None:
    layers = tiny.graph.layers
    add, pool, flatten = tiny.graph.ops
    assert (add.op_type, pool.op_type, flatten.op_type) == ("Add", "GlobalAveragePool", "Flatten")
    assert layers["stem.0"].input == "input"
    assert layers["stem.0"].output == layers["inner.0"].input
    assert layers["inner.0"].output == layers["outer.0"].input
    assert set(add.inputs) == {layers["stem.0"].output, layers["outer.0"].output}
    assert add.output == layers["depthwise.0"].input
    assert layers["depthwise.0"].output == layers["pointwise"].input
    assert pool.inputs == (layers["pointwise"].output,)
    assert flatten.inputs == (pool.output,)
    assert flatten.output == layers["head"].input
    assert (layers["head"].output,) == tiny.graph.outputs == ("output",)
    assert len(tiny.graph.tensors) == len(set(tiny.graph.tensors)) == 10


def test_weights_are_the_modules_with_batch_norm_folded_in(tiny: Tiny) -> None:
    convolution, norm = tiny.task.model.get_submodule("inner.0"), tiny.task.model.get_submodule("inner.1")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    layer = tiny.graph.layers["inner.0"]
    weight, bias = (tiny.graph.initializers[name] for name in (layer.weight, str(layer.bias)))
    np.testing.assert_allclose(weight, (convolution.weight.detach() * factor.reshape(-1, 1, 1, 1)).numpy(), rtol=1e-5)
    np.testing.assert_allclose(bias, (norm.bias.detach() - norm.running_mean * factor).numpy(), rtol=1e-4, atol=1e-6)


# --- the file ---


@pytest.mark.parametrize("batch", [1, 7])
def test_file_computes_what_the_module_computes_at_any_batch(tiny: Tiny, batch: int) -> None:
    assert tiny.graph.batch is None
    assert_computes(tiny.graph, tiny.task.model, torch.from_numpy(tiny.task.sets["report"].inputs[:batch]))


def test_file_is_the_bytes_of_the_graph(tiny: Tiny) -> None:
    assert tiny.graph.path.read_bytes() == tiny.graph.data
    assert tiny.graph.digest == hashlib.sha256(tiny.graph.data).hexdigest()


def test_file_says_nothing_about_its_author(tiny: Tiny) -> None:
    for trace in (b"conftest", b"TinyNet", b"site-packages", b"/work", b"torch", b"forward", b"stack"):
        assert trace not in tiny.graph.data, trace
    model = onnx.load_from_string(tiny.graph.data)
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    assert [part.doc_string for part in parts] == [""] * len(parts)
    assert not any(len(part.metadata_props) for part in parts)
    assert not model.graph.value_info
    assert not model.functions
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]


def test_file_is_little_more_than_its_weights(tiny: Tiny) -> None:
    values = sum(array.size for array in tiny.graph.initializers.values())
    assert values == 10_336 + 122  # weights and biases
    assert 0 < len(tiny.graph.data) - 4 * values < 2_000


def test_each_opened_graph_is_a_copy_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    opened = tiny.graph.open()
    next(iter(opened.graph)).name = "changed"
    save(tiny.graph.open(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny.graph.data
    assert "changed" not in {node.name for node in tiny.graph.open().graph}


# --- which activations belong to the operator before them ---


class Activations(nn.Module):
    """One 1 x 1 convolution before each activation; the sum keeps all of them in the graph."""

    def __init__(self) -> None:
        super().__init__()
        names = ("relu", "relu6", "leaky", "hardtanh", "two_readers", "added")
        self.layers = nn.ModuleDict({name: nn.Conv2d(1, 2, 1) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        parts = {name: layer(x) for name, layer in self.layers.items()}
        two_readers = parts["two_readers"]
        added = torch.relu(parts["added"] + torch.relu(parts["relu"]))
        total: Tensor = nn.functional.relu6(parts["relu6"]) + nn.functional.leaky_relu(parts["leaky"])
        total = total + nn.functional.hardtanh(parts["hardtanh"]) + torch.relu(two_readers) + two_readers + added
        return total


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> BaseGraph:
    return export(Activations(), IMAGE, tmp_path_factory.mktemp("activations") / "fp32.onnx")


def producers(graph: BaseGraph) -> dict[str, onnx.NodeProto]:
    return {node.output[0]: node for node in onnx.load_from_string(graph.data).graph.node}


@pytest.mark.parametrize(
    ("layer", "producer"),
    [("relu", "Relu"), ("relu6", "Clip"), ("leaky", "Conv"), ("hardtanh", "Conv"), ("two_readers", "Conv"), ("added", "Conv")],
)
def test_only_an_activation_that_cuts_at_zero_for_its_only_reader_is_absorbed(
    activations: BaseGraph, layer: str, producer: str
) -> None:
    assert producers(activations)[activations.layers[f"layers.{layer}"].output].op_type == producer


def test_operators_absorb_too_and_what_is_left_is_listed(activations: BaseGraph) -> None:
    kinds = sorted(op.op_type for op in activations.ops)
    assert kinds == ["Add"] * 6 + ["Clip", "LeakyRelu", "Relu"]  # Clip(-1, 1), and the Relu of two_readers
    made_by = producers(activations)
    added = [op for op in activations.ops if activations.layers["layers.added"].output in op.inputs]
    assert [made_by[op.output].op_type for op in added] == ["Relu"]


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        outputs: Tensor = self.after(y * 0.5) + y.reshape(-1, 2, 8, 8)  # the shape of a Reshape is no operand
        return outputs


def test_operators_know_whether_they_compute_with_a_constant(tmp_path: Path) -> None:
    graph = export(Constants(), IMAGE, tmp_path / "fp32.onnx")
    assert {op.op_type: op.constant for op in graph.ops} == {"Add": False, "Mul": True, "Reshape": False}


class ComputesShapes(nn.Module):
    """A class token for each example: with an open batch, the graph computes how many."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token, self.mix = nn.Conv2d(1, 4, 2, 2), nn.Parameter(torch.ones(1, 1, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        sequence = self.patches(x).flatten(2).transpose(1, 2)
        outputs: Tensor = self.mix(torch.cat([self.token.expand(x.shape[0], -1, -1), sequence], dim=1))
        return outputs


def test_activations_are_float_tensors_only(tmp_path: Path) -> None:
    graph = export(ComputesShapes(), IMAGE, tmp_path / "fp32.onnx")
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph.data)).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    assert {onnx.TensorProto.INT64, onnx.TensorProto.FLOAT} <= set(types.values())
    assert {types[name] for name in graph.tensors} == {onnx.TensorProto.FLOAT}
    assert {"Shape", "Expand"} <= {node.op_type for node in onnx.load_from_string(graph.data).graph.node}
    assert "Shape" not in {op.op_type for op in graph.ops}


# --- other ways to use a weight ---


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.shared(torch.relu(self.shared(self.first(x))))
        return outputs


def test_a_shared_weight_is_no_layer(tmp_path: Path) -> None:
    model = Shared()
    graph = export(model, IMAGE, tmp_path / "fp32.onnx")
    assert list(graph.layers) == ["first"]
    assert [op.op_type for op in graph.ops] == ["Conv", "Conv"]
    assert_computes(graph, model, IMAGE)


class Sequences(nn.Module):
    """Linear layers on (N, length, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(torch.relu(self.first(x[:, 0]))).mean(dim=1)
        return outputs


def test_linear_layers_on_sequences_are_named_after_their_modules(tmp_path: Path) -> None:
    model = Sequences()
    graph = export(model, IMAGE, tmp_path / "fp32.onnx")
    found = {
        name: (layer.kind, layer.shape, layer.channel_axis, layer.bias, layer.macs) for name, layer in graph.layers.items()
    }
    assert found == {
        "first": ("linear", (8, 16), 1, "first.bias", 8 * 16 * 8),
        "last": ("linear", (16, 3), 1, None, 16 * 3 * 8),
    }
    np.testing.assert_array_equal(graph.initializers["first.weight"], model.first.weight.detach().numpy().T)
    assert_computes(graph, model, IMAGE)


class Upscaling(nn.Module):
    """A convolution along one axis, and transposed ones, one of them with batch norm and one grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.up, self.norm = nn.ConvTranspose2d(1, 4, 3, stride=2, padding=1, output_padding=1, bias=False), nn.BatchNorm2d(4)
        self.grouped = nn.ConvTranspose2d(4, 4, 2, groups=2)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.uniform_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(x[:, 0])[:, None]  # (N, 1, 6, 8)
        outputs: Tensor = self.grouped(torch.relu(self.norm(self.up(x))))  # (N, 4, 13, 17)
        return outputs


def test_convolutions_along_one_axis_and_transposed_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Upscaling().eval()
    graph = export(model, IMAGE, tmp_path / "fp32.onnx")
    line, up = graph.layers.values()  # a grouped transposed convolution is no layer
    assert (line.kind, line.shape, line.channel_axis, line.macs) == ("conv1d", (6, 8, 3), 0, 6 * 8 * 3 * 8)
    assert (up.kind, up.shape, up.channel_axis, up.groups) == ("conv_transpose", (1, 4, 3, 3), 1, 1)
    assert up.macs == 4 * 9 * 6 * 8
    assert (up.strides, up.dilations, up.pads) == ((2, 2), (1, 1), (1, 1, 0, 0))  # one more row and column than symmetric
    assert graph.initializers[str(up.bias)].shape == (up.channels,) == (4,)
    assert [op.op_type for op in graph.ops] == ["Gather", "Unsqueeze", "ConvTranspose"]
    assert_computes(graph, model, IMAGE)


class Words(nn.Module):
    """An embedding by token and one by place, whose rows are not looked up but taken in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(20, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0)[:, :, None].float()
        sequence = (self.tokens(ids) + self.places.weight) * mask
        outputs: Tensor = self.head(sequence.sum(1))
        return outputs


def test_an_embedding_is_a_layer_without_products(tmp_path: Path) -> None:
    model = Words()
    ids = torch.tensor([[3, 7, 19, 0, 0], [1, 2, 3, 4, 5]])
    graph = export(model, ids, tmp_path / "fp32.onnx")
    tokens, head = graph.layers["tokens"], graph.layers["head"]
    assert list(graph.layers) == ["tokens", "head"]
    assert (tokens.kind, tokens.shape, tokens.channel_axis, tokens.macs) == ("embedding", (20, 8), 0, 0)
    assert tokens.input == "input"
    assert tokens.activations == ()
    assert head.activations == (head.input,)
    assert "input" not in graph.tensors  # integers
    assert graph.batch is None
    assert_computes(graph, model, ids)


# --- models that export only in part, or not at all ---


class OneImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 2, 1), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(x).reshape(1, 128))
        return outputs


def test_a_fixed_batch_falls_back_to_one_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = OneImage()
    graph = export(model, IMAGE, tmp_path / "fp32.onnx")
    assert graph.batch == 1
    assert_computes(graph, model, IMAGE)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Constraints violated" not in capsys.readouterr().err
    assert logging.root.manager.disable == logging.NOTSET


class NoOnnxForm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = torch.special.bessel_j0(x)
        return outputs


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("seven is not eight")


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x - 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoOnnxForm(), "model NoOnnxForm does not export to ONNX opset 21: operator prims.bessel_j0 has no ONNX form; "),
        (Broken(), "model Broken fails on an input of shape (1, 1, 8, 8): ValueError: seven is not eight"),
        (TwoOutputs(), "model TwoOutputs gives a tuple with 2 entries; expected one tensor: wrap it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_does_not_export_says_why_in_one_line(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        export(model, IMAGE, tmp_path / "fp32.onnx")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
