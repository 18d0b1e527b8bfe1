"""Every kind of layer computes as the policy says: which operators are integer, and what comes out, against the module twin."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from autocompress_plugins.affine import Int4
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.accuracy.evaluation import Evaluator, snr_db
from autocompress.building.candidate import Candidate, build, layer_rows, load_state, placement_warnings, save_state
from autocompress.building.lowering import lower
from autocompress.building.twin import module_twin, twin_outputs
from autocompress.components import QuantizedTensor
from autocompress.errors import PolicyError
from autocompress.measuring.device import Device
from autocompress.measuring.runner import load_session
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.network.placement import place
from autocompress.policy import Activation, LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

EXAMPLES = 48
KINDS = {
    "tokens": "embedding",
    "line": "conv1d",
    "up": "conv_transpose",
    "first": "linear",
    "second": "linear",
    "image": "conv2d",
    "depthwise": "depthwise",
    "grouped": "conv2d",
    "head": "linear",
}
MODES: dict[str, tuple[Activation, ...]] = {
    "embedding": ("float",),
    "conv_transpose": ("float",),
    "linear": ("static", "dynamic", "float"),
    "conv1d": ("static", "float"),
    "conv2d": ("static", "float"),
    "depthwise": ("static", "float"),
}


class Kinds(nn.Module):
    """One layer of each kind, a linear layer with and one without bias on a sequence, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.line = nn.Embedding(60, 24), nn.Conv1d(24, 16, 3, padding=1)
        self.up = nn.ConvTranspose1d(16, 12, 4, stride=2, padding=1)
        self.first, self.second = nn.Linear(12, 40), nn.Linear(40, 16, bias=False)
        self.image, self.depthwise = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.grouped, self.head = nn.Conv2d(8, 16, 1, groups=2), nn.Linear(16, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(torch.relu(self.line(self.tokens(ids).transpose(1, 2))))  # (N, 12, 12)
        y = self.second(nn.functional.gelu(self.first(x.transpose(1, 2))))  # (N, 12, 16)
        y = torch.softmax(y @ y.transpose(1, 2), dim=-1) @ y
        z = torch.relu(self.grouped(torch.relu(self.depthwise(torch.relu(self.image(y[:, None]))))))
        outputs: Tensor = self.head(z.mean(dim=(2, 3)))
        return outputs


@dataclass(frozen=True)
class Bench:
    """The network, its files, and what they compute on the calibration examples."""

    task: Task
    graph: BaseGraph
    database: LayerDatabase
    calibration: Calibration
    device: Device
    evaluator: Evaluator
    folder: Path

    def candidate(self, policy: Policy, compressed: CompressedModel | None = None) -> Candidate:
        capabilities = self.evaluator.device._target.capabilities()
        tensors = compressed if compressed is not None else self.database.compress(policy)
        return build(self.graph, policy, tensors, capabilities, self.folder / f"{policy.digest}.onnx")

    def outputs(self, candidate: Candidate) -> NDArray[Any]:
        return self.evaluator.outputs(candidate.artifact.path, "calibration", 0, EXAMPLES)

    def reference(self) -> NDArray[Any]:
        return self.evaluator.outputs(self.graph.path, "calibration", 0, EXAMPLES)

    def twin(self, candidate: Candidate) -> NDArray[Any]:
        capabilities = self.evaluator.device._target.capabilities()
        twin = module_twin(self.graph, self.task.model, {}, candidate.policy, candidate.compressed, capabilities)
        return twin_outputs(twin, self.task.sets["calibration"].inputs)

    def integer_nodes(self, candidate: Candidate) -> frozenset[str]:
        return self.device.integer_nodes(candidate.artifact.path, self.evaluator.inputs("example"))

    def warnings(self, candidate: Candidate) -> tuple[str, ...]:
        return placement_warnings(self.graph, candidate, self.integer_nodes(candidate))


@pytest.fixture(scope="module")
def bench(tiny: Tiny, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.manual_seed(0)
    model = Kinds()
    for part in model.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    folder = tmp_path_factory.mktemp("kinds")
    ids, labels = torch.randint(0, 60, (3 * EXAMPLES, 6)), torch.arange(3 * EXAMPLES) % 6
    parts = [[(ids[at : at + EXAMPLES], labels[at : at + EXAMPLES])] for at in range(0, 3 * EXAMPLES, EXAMPLES)]
    task = Task(model, ids[:1], *parts)
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    components = replace(tiny.components, recoveries=())
    calibration = Calibration(task, graph, components, folder)
    calibration.observe()
    evaluator = Evaluator.prepare(task, components.metric, graph, device, folder)
    return Bench(task, graph, LayerDatabase(graph, calibration, components, {}), calibration, device, evaluator, folder)


def one(name: str, mode: Activation, quantizer: str = "int8", bits: int = 8) -> Policy:
    return Policy({name: LayerPolicy(quantizer, bits, activation=mode)})


def every(mode: Activation, quantizer: str = "int8", bits: int = 8) -> Policy:
    """Each layer in this mode, or in the one that its kind has."""
    modes = {name: mode if mode in MODES[kind] else MODES[kind][0] for name, kind in KINDS.items()}
    return Policy({name: LayerPolicy(quantizer, bits, activation=chosen) for name, chosen in modes.items()})


def optimized(path: Path, folder: Path) -> onnx.GraphProto:
    """The graph that the runtime makes of a file under its default options."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def operators(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def tensors(path: Path) -> Counter[tuple[int, tuple[int, ...]]]:
    """Type and shape of what a file stores."""
    return Counter((tensor.data_type, tuple(tensor.dims)) for tensor in onnx.load(path).graph.initializer)


def test_the_network_has_every_kind(bench: Bench) -> None:
    assert {name: layer.kind for name, layer in bench.graph.layers.items()} == KINDS
    assert [op.op_type for op in bench.graph.ops].count("MatMul") == 2


# --- one layer at a time ---


CASES = [(name, mode) for name, kind in KINDS.items() for mode in MODES[kind]]


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.parametrize(("quantizer", "bits"), [("int8", 8), ("int4", 4)])
def test_a_layer_computes_as_the_policy_says(bench: Bench, name: str, mode: Activation, quantizer: str, bits: int) -> None:
    candidate = bench.candidate(one(name, mode, quantizer, bits))
    outputs, reference = bench.outputs(candidate), bench.reference()
    nodes = {layer.node for layer in bench.graph.layers.values()}
    assert bench.integer_nodes(candidate) & nodes == ({bench.graph.layers[name].node} if mode != "float" else set())
    assert bench.warnings(candidate) == ()
    assert candidate.encodings == {name: f"int{bits}"}
    assert snr_db(bench.twin(candidate), outputs) > (80 if mode == "float" else 33)
    assert snr_db(reference, outputs) > (26 if bits == 8 else 6)
    before, stored = (tensors(path) for path in (bench.graph.path, candidate.artifact.path))
    codes = onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4
    shape = bench.graph.layers[name].shape
    assert stored[codes, shape] + stored[codes, shape[::-1]] == 1
    assert stored[onnx.TensorProto.FLOAT, shape] == before[onnx.TensorProto.FLOAT, shape] - 1


@pytest.mark.parametrize("mode", ["static", "dynamic", "float"])
@pytest.mark.parametrize(("quantizer", "bits"), [("int8", 8), ("int4", 4)])
def test_all_layers_together(bench: Bench, mode: Activation, quantizer: str, bits: int) -> None:
    candidate = bench.candidate(every(mode, quantizer, bits))
    assert bench.warnings(candidate) == ()
    assert snr_db(bench.twin(candidate), bench.outputs(candidate)) > (80 if mode == "float" else 20)
    bench.evaluator.check(candidate.artifact.path, EXAMPLES)


def seen_by_readers(base: onnx.GraphProto, file: onnx.GraphProto, tensor: str) -> tuple[str, NDArray[Any] | None]:
    """What readers of a tensor read in a file, and scale, zero point and largest code where that is quantized."""
    producers = {name: node for node in file.node for name in node.output}
    readers = [(node.name, place) for node in base.node for place, name in enumerate(node.input) if name == tensor]
    found = [node.input[place] for name, place in readers for node in file.node if node.name == name] or [tensor]
    behind = [producers[name].input[0] for name in found if name in producers and producers[name].op_type in ("Relu", "Clip")]
    for name in (*found, *behind):  # a barrier may stand between
        if name in producers and producers[name].op_type == "DequantizeLinear":
            stored = {value.name: onnx.numpy_helper.to_array(value) for value in file.initializer}
            scale, zero_point = (stored[part] for part in producers[name].input[1:])
            return name, np.array([scale, zero_point, np.iinfo(zero_point.dtype).max], np.float64)
    return found[0], None


def computed(bench: Bench, candidate: Candidate, name: str, inputs: NDArray[Any]) -> NDArray[np.float64]:
    """A layer of the compressed module, in float64."""
    layer, module = candidate.compressed.layers[name], copy.deepcopy(bench.task.model.get_submodule(name)).double()
    weight = layer.dense().double()  # of a matrix product, which the file may have the other way round
    module.weight = nn.Parameter(weight if weight.shape == module.weight.shape else weight.T)  # type: ignore[assignment]
    if layer.bias is not None and hasattr(module, "bias"):
        module.bias = nn.Parameter(layer.bias.double())  # type: ignore[assignment]
    with torch.no_grad():
        given = torch.from_numpy(inputs)
        outputs: Tensor = module(given if given.dtype == torch.int64 else given.double())
    return outputs.numpy()


@pytest.mark.parametrize("mode", ["static", "float"])
@pytest.mark.parametrize(("quantizer", "bits"), [("int8", 8), ("int4", 4)])
def test_errors_of_each_kind_of_layer(bench: Bench, tmp_path: Path, mode: Activation, quantizer: str, bits: int) -> None:
    """What a layer of the file gives for what it is given in the file, against float64.

    Where its output is quantized, half a step at most, a quarter on average; else float32's, or half a step of an integer bias.
    """
    candidate = bench.candidate(every(mode, quantizer, bits))
    base, model = (onnx.load(path) for path in (bench.graph.path, candidate.artifact.path))
    rectified = {node.input[0]: node.output[0] for node in base.graph.node if node.op_type == "Relu"}
    ends = {layer.name: (layer.input, rectified.get(layer.output, layer.output)) for layer in bench.graph.layers.values()}
    seen = {tensor: seen_by_readers(base.graph, model.graph, tensor) for pair in ends.values() for tensor in pair}
    given = {value.name for value in model.graph.input}
    names = [name for name in dict.fromkeys(name for name, _ in seen.values()) if name not in given]
    for position, name in enumerate(names):
        model.graph.node.append(onnx.helper.make_node("Identity", [name], [f"seen{position}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"seen{position}", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "seen.onnx")
    inputs = bench.task.sets["calibration"].inputs[:EXAMPLES]
    outputs = load_session(bench.device._target, tmp_path / "seen.onnx", threads=1)([inputs])
    values = dict(zip(names, outputs[1:], strict=True)) | dict.fromkeys(given, inputs)
    assert [grid is not None for _, grid in seen.values()].count(True) >= (6 if mode == "static" else 0)
    for name, (read, written) in ends.items():
        (source, _), (result, grid) = seen[read], seen[written]
        expected = computed(bench, candidate, name, values[source])
        expected = np.maximum(expected, 0) if written in rectified.values() else expected
        if grid is None:
            error = np.abs(values[result] - expected) / np.abs(expected).max()
            most, mean = (1e-3, 5e-4) if candidate.policy.layers[name].activation == "static" else (3e-6, 5e-7)
            assert error.max() < most and error.mean() < mean, (name, error.max(), error.mean())
        else:
            scale, zero_point, most = grid
            error = np.abs(values[result] - expected.clip(-zero_point * scale, (most - zero_point) * scale)) / scale
            assert error.max() < 0.6 and error.mean() < 0.3, (name, error.max(), error.mean())


def test_state_builds_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    policy = replace(every("dynamic"), tensors={bench.graph.layers["line"].input: 16})
    candidate = bench.candidate(policy)
    save_state(candidate.compressed, tmp_path / "state.safetensors")
    again = bench.candidate(policy, load_state(tmp_path / "state.safetensors"))
    assert again.artifact.sha256 == candidate.artifact.sha256


# --- weights that are only stored in codes ---


def test_stored_codes_are_expanded_at_load_and_cost_nothing(bench: Bench, tmp_path: Path) -> None:
    policy = Policy({name: layer for name, layer in every("float", "int4", 4).layers.items() if name != "tokens"})
    plain, stored = (optimized(path, tmp_path) for path in (bench.graph.path, bench.candidate(policy).artifact.path))
    assert operators(stored) == operators(plain)


@pytest.mark.parametrize(("quantizer", "bits"), [("int8", 8), ("int4", 4)])
def test_the_table_of_an_embedding_stays_in_codes_at_run_time(bench: Bench, tmp_path: Path, quantizer: str, bits: int) -> None:
    graph = optimized(bench.candidate(one("tokens", "float", quantizer, bits)).artifact.path, tmp_path)
    tables = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer if 60 in tensor.dims}
    assert tables == {(60, 24): onnx.TensorProto.INT8, (60, 1): onnx.TensorProto.FLOAT}


def test_an_embedding_with_zero_points_and_one_with_a_single_scale(bench: Bench) -> None:
    policy = one("tokens", "float")
    layer = bench.database.compress(policy).layers["tokens"]
    assert isinstance(layer.weight, QuantizedTensor)
    zero_point = (torch.arange(60) % 11 - 5).char()
    moved = replace(layer.weight, codes=(layer.weight.codes // 2 + zero_point[:, None]).char(), zero_point=zero_point)
    single = replace(layer.weight, scale=torch.tensor(0.01), zero_point=torch.tensor(0, dtype=torch.int8))
    for weight in (moved, single):
        candidate = bench.candidate(policy, CompressedModel({"tokens": replace(layer, weight=weight)}, {}))
        assert snr_db(bench.twin(candidate), bench.outputs(candidate)) > 100


@pytest.mark.parametrize("name", ["line", "up", "first", "second", "image"])
def test_other_grids_of_stored_codes(bench: Bench, name: str) -> None:
    policy = one(name, "float")
    compressed = bench.database.compress(policy)
    layer, axis = compressed.layers[name], bench.graph.layers[name].channel_axis
    assert isinstance(layer.weight, QuantizedTensor)
    zero_point = (torch.arange(layer.weight.codes.shape[axis]) % 7 - 3).char()
    shape = [-1 if dim == axis else 1 for dim in range(layer.weight.codes.dim())]
    codes = (layer.weight.codes // 2 + zero_point.reshape(shape)).char()
    moved = replace(layer.weight, codes=codes, zero_point=zero_point)
    single = replace(layer.weight, scale=torch.tensor(0.01), zero_point=torch.tensor(0, dtype=torch.int8))
    for weight in (moved, single):
        candidate = bench.candidate(policy, CompressedModel({name: replace(layer, weight=weight)}, {}))
        assert snr_db(bench.twin(candidate), bench.outputs(candidate)) > 90


def test_a_stored_convolution_between_integer_layers_stays_float(bench: Bench) -> None:
    layers = dict.fromkeys(("image", "grouped"), LayerPolicy("int8", 8)) | one("depthwise", "float").layers
    candidate = bench.candidate(Policy(layers))
    assert bench.warnings(candidate) == ()
    assert bench.graph.layers["depthwise"].node not in bench.integer_nodes(candidate)
    assert snr_db(bench.twin(candidate), bench.outputs(candidate)) > 30


# --- a scale for each block of inputs ---


def in_blocks(bench: Bench, name: str, size: int, bits: int, *, shifted: bool = False) -> tuple[Policy, CompressedModel]:
    """A linear layer in blocks, rounded to the nearest code."""
    layer = bench.graph.layers[name]
    rows = torch.from_numpy(bench.graph.initializers[layer.weight].copy()).movedim(layer.channel_axis, 0)
    blocks = nn.functional.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))  # (outputs, blocks, size)
    scale = blocks.abs().amax(2) / (2 ** (bits - 1) - 1)
    zero_point = (torch.arange(scale.numel()).reshape(scale.shape) % 3 - 1 if shifted else torch.zeros_like(scale)).char()
    codes = (blocks / scale[:, :, None]).round() * (0.5 if shifted else 1)
    whole = (codes.floor() + zero_point[:, :, None]).flatten(1)[:, : rows.shape[1]].char()
    axis = layer.channel_axis
    weight = QuantizedTensor(whole.movedim(0, axis).contiguous(), scale, zero_point, axis, bits, group_size=size)
    compressed = bench.database.compress(one(name, "float")).layers[name]
    return one(name, "float"), CompressedModel({name: replace(compressed, weight=weight)}, {})


@pytest.mark.parametrize("name", ["first", "second", "head"])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shifted", [False, True])
def test_blocks_are_computed_with_float_activations(bench: Bench, name: str, size: int, bits: int, shifted: bool) -> None:
    candidate = bench.candidate(*in_blocks(bench, name, size, bits, shifted=shifted))
    (node,) = [node for node in onnx.load(candidate.artifact.path).graph.node if node.op_type == "MatMulNBits"]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes["accuracy_level"] == 1
    assert (attributes["bits"], attributes["block_size"]) == (bits, size)
    assert candidate.encodings == {name: f"blocks-int{bits}"}
    assert bench.warnings(candidate) == ()
    assert snr_db(bench.twin(candidate), bench.outputs(candidate)) > 100


def at_level(path: Path, folder: Path, level: int) -> Path:
    """The same file with another accuracy level."""
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    changed = folder / f"level{level}.onnx"
    onnx.save(model, changed)
    return changed


def test_the_accuracy_level_decides_what_is_computed(bench: Bench, tmp_path: Path) -> None:
    candidate = bench.candidate(*in_blocks(bench, "first", 16, 4))
    integer = at_level(candidate.artifact.path, tmp_path, 4)
    outputs = bench.device.outputs(integer, bench.evaluator.inputs("calibration"), 0, EXAMPLES, EXAMPLES)
    assert snr_db(bench.twin(candidate), outputs) < 60  # the activations were rounded to 8 bits


def test_a_product_of_dequantized_codes_would_get_integer_activations(bench: Bench, tmp_path: Path) -> None:
    """Why stored codes are not written as `DequantizeLinear`, the form that ONNX has for them."""
    compressed = bench.database.compress(one("second", "float")).layers["second"]
    assert isinstance(compressed.weight, QuantizedTensor)
    model = onnx.load(bench.graph.path)
    node = next(node for node in model.graph.node if node.name == bench.graph.layers["second"].node)
    parts = {"codes": compressed.weight.codes, "scale": compressed.weight.scale}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(part.numpy(), name) for name, part in parts.items())
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", [*parts], ["dequantized"], axis=1))
    node.input[1] = "dequantized"
    onnx.save(model, tmp_path / "dequantized.onnx")
    fast, exact = (
        bench.device.outputs(tmp_path / "dequantized.onnx", bench.evaluator.inputs("calibration"), 0, 8, 8, optimize=optimize)
        for optimize in (True, False)
    )
    assert operators(optimized(tmp_path / "dequantized.onnx", tmp_path))["MatMulNBits"] == 1
    assert snr_db(exact, fast) < 60


@pytest.mark.parametrize("activation", ["static", "dynamic"])
def test_blocks_in_integers_are_refused(bench: Bench, tiny: Tiny, activation: Activation) -> None:
    components = replace(tiny.components, quantizers={"int4": Int4(group_size=16)}, recoveries=())
    database = LayerDatabase(bench.graph, bench.calibration, components, {})
    stored = database.compress(one("first", "float", "int4", 4)).layers["first"].weight
    assert isinstance(stored, QuantizedTensor)
    assert (stored.group_size, tuple(stored.scale.shape)) == (16, (40, 1))
    with pytest.raises(PolicyError, match=f"layer first: quantizer 'int4' gives blocks of inputs .* is '{activation}'"):
        database.compress(one("first", activation, "int4", 4))


@pytest.mark.parametrize("size", [8, 24])
def test_blocks_that_the_operator_does_not_have_are_refused(bench: Bench, size: int) -> None:
    with pytest.raises(PolicyError, match=f"blocks of {size} inputs: the runtime's operator takes powers of two from 16"):
        bench.candidate(*in_blocks(bench, "first", size, 4))


# --- ranges that are found at run time ---


class Heads(nn.Module):
    """Three layers that read one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.head = nn.ModuleList(nn.Linear(16, 16) for _ in range(3)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part(x) for part in self.parts)
        outputs: Tensor = self.head((torch.softmax(query @ key.transpose(1, 2), -1) @ value).mean(1))
        return outputs


@pytest.fixture(scope="module")
def heads(tiny: Tiny, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("heads")
    inputs, labels = torch.randn(3 * EXAMPLES, 5, 16), torch.arange(3 * EXAMPLES) % 4
    parts = [[(inputs[at : at + EXAMPLES], labels[at : at + EXAMPLES])] for at in range(0, 3 * EXAMPLES, EXAMPLES)]
    task = Task(Heads(), inputs[:1], *parts)
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    components = replace(tiny.components, recoveries=())
    calibration = Calibration(task, graph, components, folder)
    evaluator = Evaluator.prepare(task, components.metric, graph, device, folder)
    yield Bench(task, graph, LayerDatabase(graph, calibration, components, {}), calibration, device, evaluator, folder)


def test_layers_that_read_one_tensor_find_its_range_once(heads: Bench, tmp_path: Path) -> None:
    names = [f"parts.{number}" for number in range(3)]
    candidate = heads.candidate(Policy(dict.fromkeys(names, LayerPolicy("int8", 8, activation="dynamic"))))
    found = operators(optimized(candidate.artifact.path, tmp_path))
    assert found["DynamicQuantizeLinear"] == 1
    assert found["MatMulIntegerToFloat"] == 3
    assert heads.warnings(candidate) == ()
    assert snr_db(heads.twin(candidate), heads.outputs(candidate)) > 40


def test_a_dynamic_file_is_scored_one_example_at_a_time(heads: Bench) -> None:
    """The range covers the batch, so that an example's result depends on its neighbours; the file is timed on one example."""
    candidate = heads.candidate(one("parts.0", "dynamic"))
    inputs = heads.evaluator.inputs("calibration")
    alone, together = (heads.device.outputs(candidate.artifact.path, inputs, 0, EXAMPLES, batch) for batch in (1, EXAMPLES))
    np.testing.assert_array_equal(heads.outputs(candidate), alone)
    assert np.abs(alone - together).max() > 0


# --- products of two activations ---


@pytest.mark.parametrize("precision", ["integer", "dynamic", "float"])
def test_a_product_of_two_activations(heads: Bench, precision: Any) -> None:
    products = [op.name for op in heads.graph.ops if op.op_type == "MatMul"]
    assert len(products) == 2
    policy = Policy(dict.fromkeys(heads.graph.layers, LayerPolicy("int8", 8)), ops=dict.fromkeys(products, precision))
    candidate = heads.candidate(policy)
    integer = heads.integer_nodes(candidate)
    assert set(products) & integer == (set() if precision == "float" else set(products))
    assert set(products) & candidate.integer == set(products) & integer
    assert snr_db(heads.reference(), heads.outputs(candidate)) > 25
    heads.evaluator.check(candidate.artifact.path, EXAMPLES)


class InOrder(frozenset[str]):
    """A set that is gone through as it is told; a plain one's order changes from process to process."""

    backwards = False

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), reverse=self.backwards))


class Backwards(InOrder):
    backwards = True


def test_a_file_has_the_same_bytes_in_every_process(heads: Bench, tiny: Tiny) -> None:
    products = [op.name for op in heads.graph.ops if op.op_type == "MatMul"]
    policy, capabilities = Policy(ops=dict.fromkeys(products, "dynamic")), tiny.components.target.capabilities()
    placement = place(heads.graph, policy, capabilities)
    assert placement.dynamic == {*products}
    files = []
    for order in (InOrder, Backwards):
        lowered = lower(heads.graph, CompressedModel({}, {}), replace(placement, dynamic=order(products)), capabilities)
        files.append(ir.serde.serialize_model(lowered.model).SerializeToString())
    assert files[0] == files[1]


def test_a_product_is_float_unless_its_inputs_are_quantized_anyway(heads: Bench) -> None:
    products = {op.name for op in heads.graph.ops if op.op_type == "MatMul"}
    candidate = heads.candidate(Policy(dict.fromkeys(heads.graph.layers, LayerPolicy("int8", 8))))
    assert not heads.integer_nodes(candidate) & products


# --- bits of single tensors ---


def test_a_tensor_of_16_bits_is_rounded_finely_and_its_layers_are_float(bench: Bench) -> None:
    line = bench.graph.layers["line"]
    layers = dict.fromkeys(("line", "image"), LayerPolicy("int8", 8))
    tensors = {line.input: 16, line.output: 16}
    short, long = bench.candidate(Policy(layers)), bench.candidate(Policy(layers, tensors=tensors))
    stored = {tensor.data_type for tensor in onnx.load(long.artifact.path).graph.initializer}
    assert onnx.TensorProto.UINT16 in stored
    assert line.node not in bench.integer_nodes(long)
    assert bench.graph.layers["image"].node in bench.integer_nodes(long)
    assert bench.warnings(long) == ()
    assert long.encodings == short.encodings
    assert snr_db(bench.twin(long), bench.outputs(long)) > 33
    bench.evaluator.check(long.artifact.path, EXAMPLES)


def test_16_bits_lose_next_to_nothing(bench: Bench) -> None:
    inputs = {bench.graph.layers[name].input: 16 for name in ("line", "first", "head")}
    candidate = bench.candidate(Policy(tensors=inputs))
    assert {grid.bits for grid in candidate.compressed.ranges.values()} == {16}
    assert snr_db(bench.reference(), bench.outputs(candidate)) > 60
    assert bench.integer_nodes(candidate) == frozenset()


def test_a_tensor_of_32_bits_stays_float(bench: Bench) -> None:
    image = bench.graph.layers["image"]
    layers = dict.fromkeys(("image", "depthwise"), LayerPolicy("int8", 8))
    candidate = bench.candidate(Policy(layers, tensors={image.input: 32}))
    assert image.input not in candidate.compressed.ranges
    assert bench.integer_nodes(candidate) & {layer.node for layer in bench.graph.layers.values()} == {
        bench.graph.layers["depthwise"].node
    }
    assert bench.warnings(candidate) == ()
    assert candidate.encodings == {"image": "int8", "depthwise": "int8"}
    rows = {row.layer: row.activation for row in layer_rows(bench.graph, candidate)}
    assert rows == dict.fromkeys(KINDS, "") | {"image": "float", "depthwise": "static"}


# --- what cannot be ---


REFUSED: dict[str, tuple[Callable[[BaseGraph], Policy], str]] = {
    "dynamic_convolution": (
        lambda _: one("line", "dynamic"),
        "layer line: activation dynamic: this target offers static, ",
    ),
    "static_embedding": (lambda _: one("tokens", "static"), "layer tokens: activation static: this target offers float here"),
    "bits": (lambda graph: Policy(tensors={graph.layers["head"].input: 12}), "bits 12: this target offers 8, 16, 32 here"),
    "tensor": (lambda _: Policy(tensors={"nowhere": 16}), "policy: tensor nowhere: this target offers"),
    "integers": (lambda _: Policy(tensors={"input": 16}), "policy: tensor input: this target offers"),
    "operator": (lambda _: Policy(ops={"nothing": "float"}), "policy: operator nothing: this target offers"),
    "precision": (
        lambda graph: Policy(ops={next(op.name for op in graph.ops if op.op_type == "Gelu"): "integer"}),
        "precision integer: this target offers float here",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_target_cannot_compute_is_refused(bench: Bench, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(PolicyError) as error:
        bench.database.compress(make(bench.graph))
    assert message in str(error.value)
