from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from autocompress_plugins.mean_rounding import MeanRounding
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import autocompress.building.weight_codes
from autocompress.accuracy.evaluation import snr_db
from autocompress.building.candidate import Candidate, build
from autocompress.building.lowering import lower
from autocompress.components import QuantizedTensor
from autocompress.measuring.device import Device
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.network.onnx_file import save
from autocompress.network.placement import Placement
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

Build = Callable[[Policy], Candidate]

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
SPARSE8, SPARSE4 = LayerPolicy("int8", 8, "sparse", 0.7), LayerPolicy("int4", 4, "sparse", 0.7)
HALF = ChannelPolicy("sparse", 0.5)
ALL8, ALL4 = Policy(dict.fromkeys(LAYERS, INT8)), Policy(dict.fromkeys(LAYERS, INT4))
MIXED = Policy({"stem.0": INT8, "inner.0": INT4, "outer.0": SPARSE8, "pointwise": INT4, "head": INT8})
CUT = Policy(ALL8.layers, {"inner.0": HALF, "depthwise.0": HALF, "pointwise": HALF})
POLICIES = {
    "int8": ALL8,
    "int4": ALL4,
    "sparse_int8": Policy(dict.fromkeys(LAYERS, SPARSE8)),
    "sparse_int4": Policy(dict.fromkeys(LAYERS, SPARSE4)),
    "mixed": MIXED,
    "alternating": Policy(dict.fromkeys(LAYERS[::2], INT8)),
    "alternating_int4": Policy(dict.fromkeys(LAYERS[1::2], INT4)),
    "cut": CUT,
}


def loaded(candidate: Candidate) -> onnx.GraphProto:
    model = onnx.load(candidate.artifact.path)
    onnx.checker.check_model(model, full_check=True)
    return model.graph


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
    return nodes[name]


def dequantizer(graph: onnx.GraphProto, node: str, position: int = 1) -> onnx.NodeProto:
    """The operator that gives an input (1: weight, 2: bias) of a layer's node."""
    found = producers(graph)[named(graph, node).input[position]]
    assert found.op_type == "DequantizeLinear"
    return found


def evaluated(graph: onnx.GraphProto, tensor: str) -> NDArray[Any]:
    """A tensor that depends on initializers only, by ONNX's reference implementation."""
    if tensor in initializers(graph):
        return onnx.numpy_helper.to_array(initializers(graph)[tensor])
    needed, nodes = {tensor}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    constants = [constant for constant in graph.initializer if constant.name in needed]
    output = onnx.ValueInfoProto(name=tensor)
    part = onnx.helper.make_graph(nodes[::-1], "part", [], [output], constants)
    model = onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", 21)])
    outputs: Any = ReferenceEvaluator(model).run(None, {})
    array: NDArray[Any] = outputs[0]
    return array


def pair(device: Device, path: Path, inputs: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs as shipped, and without the runtime's optimizations."""
    fast, exact = (device.outputs(path, inputs, 0, 128, 64, optimize=optimize) for optimize in (True, False))
    return fast, exact


# --- what is stored ---


def test_one_file_holds_float_int8_and_int4_weights(tiny: Tiny, build_tiny: Build) -> None:
    candidate = build_tiny(Policy({"stem.0": INT8, "inner.0": INT4, "depthwise.0": INT8, "head": INT4}))
    stored = Counter(tensor.data_type for tensor in loaded(candidate).initializer if len(tensor.dims) > 1)
    weights = {(tuple(tensor.dims), tensor.data_type) for tensor in loaded(candidate).initializer if len(tensor.dims) > 1}
    kinds = onnx.TensorProto
    assert stored == {kinds.INT8: 2, kinds.INT4: 2, kinds.FLOAT: 2}
    assert weights == {
        ((16, 1, 3, 3), kinds.INT8),  # stem and depthwise
        ((32, 16, 3, 3), kinds.INT4),
        ((16, 32, 3, 3), kinds.FLOAT),
        ((32, 16, 1, 1), kinds.FLOAT),
        ((10, 32), kinds.INT4),
    }
    assert dict(candidate.encodings) == {"stem.0": "int8", "inner.0": "int4", "depthwise.0": "int8", "head": "int4"}


def test_int4_codes_are_two_to_a_byte_the_first_in_the_low_half(tiny: Tiny, build_tiny: Build) -> None:
    candidate = build_tiny(ALL4)
    graph = loaded(candidate)
    for name, layer in tiny.graph.layers.items():
        cast = producers(graph)[dequantizer(graph, layer.node).input[0]]
        assert cast.op_type == "Cast"
        stored = initializers(graph)[cast.input[0]]
        packed = np.frombuffer(stored.raw_data, np.uint8)
        assert stored.data_type == onnx.TensorProto.INT4
        assert len(packed) == (layer.parameters + 1) // 2
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: layer.parameters].astype(np.int8)
        signed = np.where(nibbles > 7, nibbles - 16, nibbles).reshape(layer.shape)
        weight = candidate.compressed.layers[name].weight
        assert isinstance(weight, QuantizedTensor)
        np.testing.assert_array_equal(signed, weight.codes.numpy())


@pytest.mark.parametrize("name", POLICIES)
def test_the_file_decodes_to_the_compressed_weights(tiny: Tiny, build_tiny: Build, name: str) -> None:
    candidate = build_tiny(POLICIES[name])
    graph = loaded(candidate)
    for layer_name, compressed in candidate.compressed.layers.items():
        node = tiny.graph.layers[layer_name].node
        if not isinstance(compressed.weight, QuantizedTensor):
            continue
        scaled = dequantizer(graph, node)
        np.testing.assert_array_equal(evaluated(graph, scaled.input[0]), compressed.weight.codes.numpy())
        np.testing.assert_array_equal(evaluated(graph, scaled.input[1]), compressed.weight.scale.numpy())
        np.testing.assert_array_equal(evaluated(graph, scaled.output[0]), compressed.dense().numpy())
        if compressed.mask is not None:
            assert not evaluated(graph, scaled.output[0])[~compressed.mask.numpy()].any()


def test_a_float_layer_is_stored_as_float(tiny: Tiny, build_tiny: Build) -> None:
    candidate = build_tiny(Policy({"inner.0": LayerPolicy(pruner="sparse", sparsity=0.5)}))
    graph, compressed = loaded(candidate), candidate.compressed.layers["inner.0"]
    node = named(graph, tiny.graph.layers["inner.0"].node)
    assert candidate.encodings == {"inner.0": "float32"}
    np.testing.assert_array_equal(evaluated(graph, node.input[1]), compressed.dense().numpy())
    assert compressed.bias is not None
    np.testing.assert_array_equal(evaluated(graph, node.input[2]), compressed.bias.numpy())
    assert not {node.op_type for node in graph.node} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("name", POLICIES)
def test_biases_lie_on_the_grid_of_the_integer_sum(tiny: Tiny, build_tiny: Build, name: str) -> None:
    candidate = build_tiny(POLICIES[name])
    graph = loaded(candidate)
    for layer_name, compressed in candidate.compressed.layers.items():
        node = named(graph, tiny.graph.layers[layer_name].node)
        if not isinstance(compressed.weight, QuantizedTensor):
            continue
        assert compressed.bias is not None
        activation, bias = producers(graph)[node.input[0]], dequantizer(graph, node.name, 2)
        codes, scale = (evaluated(graph, name) for name in bias.input)
        assert codes.dtype == np.int32
        input_scale = evaluated(graph, activation.input[1])
        np.testing.assert_array_equal(scale, input_scale * compressed.weight.scale.numpy())
        error = np.abs(codes * scale.astype(np.float64) - compressed.bias.numpy())
        assert (error <= 0.5001 * scale).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_file_holds_nothing_that_is_not_read(build_tiny: Build, name: str) -> None:
    graph = loaded(build_tiny(POLICIES[name]))
    read = {tensor for node in graph.node for tensor in node.input} | {output.name for output in graph.output}
    assert set(initializers(graph)) <= read
    assert set(producers(graph)) <= read
    counted = {name for node in graph.node if node.op_type == "NonZero" for name in node.output}
    assert {value.name for value in graph.value_info} == counted
    assert max(len(tensor.name) for tensor in graph.initializer) <= 3


@pytest.mark.parametrize(("policy", "bits"), [(ALL8, 8), (ALL4, 4)])
def test_a_file_is_little_more_than_codes_scales_and_biases(tiny: Tiny, build_tiny: Build, policy: Policy, bits: int) -> None:
    channels = sum(layer.channels for layer in tiny.graph.layers.values())
    codes = sum((layer.parameters * bits + 7) // 8 for layer in tiny.graph.layers.values())
    values = codes + 3 * 4 * channels  # scales of weights and biases, and the biases
    overhead = build_tiny(policy).artifact.size_bytes - values
    assert 0 < overhead < 3_500  # about 50 operators and their names


def test_a_cut_depthwise_convolution_has_as_many_groups_as_channels(tiny: Tiny, build_tiny: Build) -> None:
    graph = loaded(build_tiny(Policy(channels={"depthwise.0": HALF})))
    node = named(graph, tiny.graph.layers["depthwise.0"].node)
    assert {attribute.name: attribute.i for attribute in node.attribute}["group"] == 8
    assert tuple(initializers(graph)[node.input[1]].dims) == (8, 1, 3, 3)
    inner = named(graph, tiny.graph.layers["inner.0"].node)
    assert tuple(initializers(graph)[inner.input[1]].dims) == (32, 8, 3, 3)


# --- packed sparse codes ---


def size(tiny: Tiny, database: LayerDatabase, policy: Policy, path: Path, packed_sparse: bool) -> tuple[int, str]:
    capabilities = replace(tiny.components.target.capabilities(), packed_sparse=packed_sparse)
    candidate = build(tiny.graph, policy, database.compress(policy), capabilities, path)
    (encoding,) = candidate.encodings.values()
    return candidate.artifact.size_bytes, encoding


@pytest.mark.parametrize("decision", [INT8, INT4])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("layer", ["inner.0", "pointwise", "head"])
def test_sparse_codes_are_packed_when_that_makes_the_file_smaller(
    tiny: Tiny,
    database: LayerDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
    sparsity: float,
    decision: LayerPolicy,
) -> None:
    policy = Policy({layer: replace(decision, pruner="sparse", sparsity=sparsity)})
    chosen, encoding = size(tiny, database, policy, tmp_path / "chosen.onnx", True)
    dense, plain = size(tiny, database, policy, tmp_path / "dense.onnx", False)
    monkeypatch.setattr(autocompress.building.weight_codes, "NODE_BYTES", -10_000)
    packed, forced = size(tiny, database, policy, tmp_path / "packed.onnx", True)
    assert forced == f"sparse-{plain}" == f"sparse-int{decision.bits}"
    assert chosen == (packed if encoding == forced else dense)
    assert chosen <= min(dense, packed) + 120  # the choice is made on an estimate


def test_the_same_share_is_packed_in_a_large_layer_only(build_tiny: Build) -> None:
    encodings = build_tiny(POLICIES["sparse_int4"]).encodings
    assert encodings["inner.0"] == encodings["outer.0"] == "sparse-int4"
    assert encodings["stem.0"] == encodings["depthwise.0"] == "int4"


class Lengths(nn.Module):
    """Weights whose numbers leave every remainder that packing must fill up."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 3, 5, 7, 3, 3, 2, 2, 4)
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("decision", [SPARSE8, SPARSE4])
def test_packing_fills_up_every_length(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: tuple[BaseGraph, LayerDatabase], decision: LayerPolicy
) -> None:
    monkeypatch.setattr(autocompress.building.weight_codes, "NODE_BYTES", -10_000)
    graph, database = lengths
    policy = Policy(dict.fromkeys(graph.layers, decision))
    candidate = build(graph, policy, database.compress(policy), tiny.components.target.capabilities(), tmp_path / "file.onnx")
    file = loaded(candidate)
    assert {layer.parameters % 8 for layer in graph.layers.values()} == {0, 1, 3, 4, 5, 6, 7}
    assert set(candidate.encodings.values()) == {f"sparse-int{decision.bits}"}
    for name, layer in graph.layers.items():
        weight = candidate.compressed.layers[name].weight
        assert isinstance(weight, QuantizedTensor)
        np.testing.assert_array_equal(evaluated(file, dequantizer(file, layer.node).input[0]), weight.codes.numpy())


def test_a_convolution_that_gives_the_output_gives_it_quantized(
    tiny: Tiny, device: Device, calibration_file: Path, tmp_path: Path, lengths: tuple[BaseGraph, LayerDatabase]
) -> None:
    graph, database = lengths
    policy = Policy(dict.fromkeys(graph.layers, INT8))
    path = tmp_path / "file.onnx"
    file = loaded(build(graph, policy, database.compress(policy), tiny.components.target.capabilities(), path))
    assert [output.name for output in file.output] == ["output"]
    assert producers(file)["output"].op_type == "DequantizeLinear"
    assert device.integer_nodes(path, calibration_file) == {layer.node for layer in graph.layers.values()}
    reference = device.outputs(graph.path, calibration_file, 0, 128, 64)
    fast, exact = pair(device, path, calibration_file)
    assert fast.shape == reference.shape == (128, 4, 8, 8)
    assert snr_db(exact, fast) >= 30
    assert snr_db(reference, fast) >= 20


@pytest.fixture(scope="module")
def lengths(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseGraph, LayerDatabase]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lengths")
    sets = tiny.task.sets
    task = Task(Lengths(), tiny.task.example_input, sets["calibration"], sets["search"], sets["report"])
    graph = export(task.model, task.example_input, folder / "fp32.onnx")
    return graph, LayerDatabase(graph, Calibration(task, graph, tiny.components, folder), tiny.components, {})


@pytest.mark.parametrize("name", ["int4", "sparse_int4", "sparse_int8"])
def test_packed_weights_are_expanded_when_the_file_is_loaded(build_tiny: Build, tmp_path: Path, name: str) -> None:
    candidate = build_tiny(POLICIES[name])
    assert {"NonZero" if name == "sparse_int8" else "Cast"} <= {node.op_type for node in loaded(candidate).node}
    left = operators(candidate.artifact.path, tmp_path)
    assert left["QLinearConv"] == 5
    assert left["QGemm"] == 1
    assert not set(left) & {"Cast", "NonZero", "ScatterElements", "Gather", "BitShift", "BitwiseAnd", "Slice"}


# --- what the runtime makes of it, under its default options ---


def computing(tiny: Tiny) -> set[str]:
    """Nodes that compute; the others only move values and have no integer form of their own."""
    moving = tiny.components.target.capabilities().passthrough_ops
    return {layer.node for layer in tiny.graph.layers.values()} | {op.name for op in tiny.graph.ops if op.op_type not in moving}


@pytest.mark.parametrize("name", POLICIES)
def test_the_runtime_computes_in_integers_what_was_meant_and_nothing_else(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build, name: str
) -> None:
    candidate = build_tiny(POLICIES[name])
    found = device.integer_nodes(candidate.artifact.path, calibration_file)
    assert found == candidate.integer & computing(tiny)
    wanted = {tiny.graph.layers[layer].node for layer, policy in POLICIES[name].layers.items() if policy.quantizer}
    assert found >= wanted


def test_placement_holds_for_every_choice_of_integer_layers(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build
) -> None:
    nodes = {layer.node for layer in tiny.graph.layers.values()}
    for chosen in product([None, INT8], repeat=len(LAYERS)):
        policy = Policy({name: decision for name, decision in zip(LAYERS, chosen, strict=True) if decision is not None})
        candidate = build_tiny(policy)
        found = device.integer_nodes(candidate.artifact.path, calibration_file)
        assert found & nodes == {tiny.graph.layers[name].node for name in policy.layers}, list(policy.layers)
        assert found == candidate.integer & computing(tiny), list(policy.layers)


@pytest.mark.parametrize("name", POLICIES)
def test_the_optimized_file_computes_what_its_graph_says(
    device: Device, calibration_file: Path, build_tiny: Build, name: str
) -> None:
    fast, exact = pair(device, build_tiny(POLICIES[name]).artifact.path, calibration_file)
    assert snr_db(exact, fast) >= 30


def test_nothing_to_do_gives_the_fp32_file(tiny: Tiny, build_tiny: Build) -> None:
    graph = loaded(build_tiny(Policy()))
    assert [node.op_type for node in graph.node] == [node.op_type for node in onnx.load(tiny.graph.path).graph.node]


def test_an_operator_kept_in_float_stays_float_between_integer_layers(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build
) -> None:
    add, pool, _ = tiny.graph.ops
    candidate = build_tiny(Policy(ALL8.layers, ops={add.name: "float", pool.name: "float"}))
    found = device.integer_nodes(candidate.artifact.path, calibration_file)
    assert {add.name, pool.name} <= device.integer_nodes(build_tiny(ALL8).artifact.path, calibration_file)
    assert found == {layer.node for layer in tiny.graph.layers.values()}


# --- barriers ---


def without_barriers(path: Path, target: Path) -> int:
    """Take the operators out that stand between a dequantizer and a layer; returns how many."""
    model = onnx.load(path)
    made_by = producers(model.graph)
    barriers = [
        node
        for node in model.graph.node
        if node.op_type in {"Relu", "Clip"} and made_by[node.input[0]].op_type == "DequantizeLinear" and not node.name
    ]
    for barrier in barriers:
        for node in model.graph.node:
            node.input[:] = [barrier.input[0] if name == barrier.output[0] else name for name in node.input]
        model.graph.node.remove(barrier)
    onnx.save(model, target)
    return len(barriers)


def test_a_float_convolution_between_quantized_tensors_keeps_its_precision(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build, tmp_path: Path
) -> None:
    policy = Policy({name: INT8 for name in LAYERS if name not in ("inner.0", "pointwise")})
    path, node = build_tiny(policy).artifact.path, tiny.graph.layers["inner.0"].node
    fast, exact = pair(device, path, calibration_file)
    assert node not in device.integer_nodes(path, calibration_file)
    assert snr_db(exact, fast) > 60
    # Without the barrier the runtime makes it integer, and the results differ: the barrier is what keeps it.
    bare = tmp_path / "bare.onnx"
    assert without_barriers(path, bare) == 2
    fast, unbarred = pair(device, bare, calibration_file)
    np.testing.assert_array_equal(unbarred, exact)  # its values change nothing
    assert node in device.integer_nodes(bare, calibration_file)
    assert snr_db(exact, fast) < 50


def test_a_barrier_lets_negative_values_through(tiny: Tiny, device: Device, calibration_file: Path, tmp_path: Path) -> None:
    stem = tiny.graph.layers["stem.0"]  # reads the image, which has negative values
    quantized = {stem.input: stem.input, stem.output: stem.output}
    ranges = {name: tiny.calibration.ranges[name] for name in quantized}
    assert ranges[stem.input].zero_point > 0
    capabilities = tiny.components.target.capabilities()
    paths = {}
    for barriers in ({}, {stem.node: stem.input}):
        placement = Placement(frozenset(), quantized, barriers)
        paths[len(barriers)] = tmp_path / f"{len(barriers)}.onnx"
        save(lower(tiny.graph, CompressedModel({}, ranges), placement, capabilities).model, paths[len(barriers)])
    (_, expected), (fast, exact) = (pair(device, path, calibration_file) for path in paths.values())
    np.testing.assert_array_equal(exact, expected)
    assert snr_db(exact, fast) > 60
    assert stem.node in device.integer_nodes(paths[0], calibration_file)
    assert stem.node not in device.integer_nodes(paths[1], calibration_file)


class Shared(nn.Module):
    """One weight used twice is no layer; its first use stands between two layers, as does a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.between = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.transposed, self.last = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.shared(self.first(x).relu()).relu()).relu()
        x = self.last(self.transposed(x).relu()).relu()
        outputs: Tensor = self.shared(x).mean(dim=(2, 3))
        return outputs


@pytest.fixture
def shared(tiny: Tiny, tmp_path: Path) -> Iterator[tuple[BaseGraph, Path]]:
    torch.manual_seed(0)
    sets = tiny.task.sets
    task = Task(Shared(), tiny.task.example_input, sets["calibration"], sets["search"], sets["report"])
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    database = LayerDatabase(graph, Calibration(task, graph, tiny.components, tmp_path), tiny.components, {})
    policy = Policy(dict.fromkeys(graph.layers, INT8))
    capabilities = tiny.components.target.capabilities()
    yield graph, build(graph, policy, database.compress(policy), capabilities, tmp_path / "file.onnx").artifact.path


def test_weights_that_are_no_layers_stay_float_between_layers(
    shared: tuple[BaseGraph, Path], device: Device, calibration_file: Path
) -> None:
    graph, path = shared
    assert set(graph.layers) == {"first", "between", "last"}
    found = device.integer_nodes(path, calibration_file)
    weighted = {op.name for op in graph.ops if op.op_type in {"Conv", "ConvTranspose"}}
    assert len(weighted) == 3
    assert not found & weighted
    assert found >= {layer.node for layer in graph.layers.values()}
    fast, exact = pair(device, path, calibration_file)
    assert snr_db(exact, fast) > 45


# --- grids other than the default ---


def codes_of(values: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.int8).reshape(shape)


def with_head(compressed: CompressedModel, weight: QuantizedTensor) -> CompressedModel:
    return replace(compressed, layers={"head": replace(compressed.layers["head"], weight=weight)})


def moved_head(compressed: CompressedModel, zero_point: Tensor) -> QuantizedTensor:
    """The linear layer's codes, moved within the byte by a zero point for each channel."""
    weight = compressed.layers["head"].weight
    assert isinstance(weight, QuantizedTensor)
    codes = (weight.codes.int() + zero_point[:, None]).clamp(-128, 127)
    return replace(weight, codes=codes.char(), zero_point=zero_point)


def test_a_zero_point_is_subtracted_at_load_where_the_levels_fit_a_byte(
    tiny: Tiny, database: LayerDatabase, device: Device, calibration_file: Path, tmp_path: Path
) -> None:
    policy = Policy({"head": INT8})
    compressed = database.compress(policy)
    moved = moved_head(compressed, codes_of([*range(-5, 5)], (10,)))
    capabilities = tiny.components.target.capabilities()
    path = tmp_path / "file.onnx"
    graph = loaded(build(tiny.graph, policy, with_head(compressed, moved), capabilities, path))
    scaled = dequantizer(graph, tiny.graph.layers["head"].node)
    assert not evaluated(graph, scaled.input[2]).any()
    assert evaluated(graph, scaled.input[0]).dtype == np.int8
    np.testing.assert_array_equal(evaluated(graph, scaled.output[0]), moved.dequantize().numpy())
    assert tiny.graph.layers["head"].node in device.integer_nodes(path, calibration_file)
    assert operators(path, tmp_path)["Sub"] == 0


def test_a_zero_point_that_the_levels_need_is_kept(tiny: Tiny, database: LayerDatabase, tmp_path: Path) -> None:
    policy = Policy({"head": INT8})
    compressed = database.compress(policy)
    moved = replace(moved_head(compressed, codes_of([0], (1,))), zero_point=codes_of([100] * 5 + [-100] * 5, (10,)))
    assert int((moved.codes.int() - moved.zero_point[:, None]).abs().max()) > 128
    candidate = build(
        tiny.graph, policy, with_head(compressed, moved), tiny.components.target.capabilities(), tmp_path / "file.onnx"
    )
    graph = loaded(candidate)
    scaled = dequantizer(graph, tiny.graph.layers["head"].node)
    np.testing.assert_array_equal(evaluated(graph, scaled.input[2]), moved.zero_point.numpy())
    np.testing.assert_array_equal(evaluated(graph, scaled.output[0]), moved.dequantize().numpy())


# --- codebooks ---

LEARNED, SPARSE_LEARNED = LayerPolicy("learned", 4), LayerPolicy("learned", 4, "sparse", 0.7)
CODEBOOKS = {
    "codebook": Policy(dict.fromkeys(LAYERS, LEARNED)),
    "sparse_codebook": Policy(dict.fromkeys(LAYERS, SPARSE_LEARNED)),
    "mixed_codebook": Policy(
        {"stem.0": INT8, "inner.0": LEARNED, "outer.0": SPARSE_LEARNED, "pointwise": INT4, "head": LEARNED}
    ),
    "even": Policy(dict.fromkeys(LAYERS, LayerPolicy("centred", 4))),
}


@pytest.fixture(scope="module")
def learned(tiny: Tiny) -> LayerDatabase:
    """Compresses with learned codebooks, and with even cells around the mean, which have zero points."""
    quantizers = {"learned": MeanRounding("kmeans"), "centred": MeanRounding("uniform")}
    components = replace(tiny.components, quantizers={**tiny.components.quantizers, **quantizers})
    return LayerDatabase(tiny.graph, tiny.calibration, components, {})


@pytest.fixture
def build_learned(tiny: Tiny, learned: LayerDatabase, tmp_path: Path) -> Callable[..., Candidate]:
    def built(policy: Policy, codebooks: bool = True) -> Candidate:
        capabilities = replace(tiny.components.target.capabilities(), codebooks=codebooks)
        return build(tiny.graph, policy, learned.compress(policy), capabilities, tmp_path / f"{policy.digest}-{codebooks}.onnx")

    return built


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebooks_and_zero_points_fold_into_integer_kernels(
    tiny: Tiny, device: Device, calibration_file: Path, build_learned: Callable[..., Candidate], tmp_path: Path, name: str
) -> None:
    candidate = build_learned(CODEBOOKS[name])
    path = candidate.artifact.path
    found = device.integer_nodes(path, calibration_file)
    assert found == candidate.integer & computing(tiny)
    assert found >= {tiny.graph.layers[layer].node for layer in CODEBOOKS[name].layers}
    fast, exact = pair(device, path, calibration_file)
    assert snr_db(exact, fast) >= 30
    left = operators(path, tmp_path)
    convolutions = [layer for layer in CODEBOOKS[name].layers if layer != "head"]
    assert left["QLinearConv"] == len(convolutions)
    assert left["QGemm"] == 1
    assert not set(left) & {"Cast", "NonZero", "ScatterElements", "Gather", "BitShift", "BitwiseAnd", "Slice", "Sub"}


@pytest.mark.parametrize("name", CODEBOOKS)
def test_files_with_codebooks_decode_to_the_compressed_weights(
    tiny: Tiny, build_learned: Callable[..., Candidate], name: str
) -> None:
    candidate = build_learned(CODEBOOKS[name])
    graph = loaded(candidate)
    for layer_name, compressed in candidate.compressed.layers.items():
        scaled = dequantizer(graph, tiny.graph.layers[layer_name].node)
        np.testing.assert_array_equal(evaluated(graph, scaled.output[0]), compressed.dense().numpy())
        if compressed.mask is not None:
            assert not evaluated(graph, scaled.output[0])[~compressed.mask.numpy()].any()


def test_codebooks_are_stored_in_4_bits_with_a_table_for_each_layer(
    tiny: Tiny, build_learned: Callable[..., Candidate], build_tiny: Build
) -> None:
    candidate = build_learned(CODEBOOKS["codebook"])
    assert set(candidate.encodings.values()) == {"codebook4"}
    graph = loaded(candidate)
    for name, layer in tiny.graph.layers.items():
        looked_up = producers(graph)[dequantizer(graph, layer.node).input[0]]
        widened = producers(graph)[looked_up.input[1]]
        table, stored = initializers(graph)[looked_up.input[0]], initializers(graph)[widened.input[0]]
        assert (looked_up.op_type, widened.op_type) == ("Gather", "Cast")
        assert (table.data_type, stored.data_type) == (onnx.TensorProto.INT8, onnx.TensorProto.UINT4)
        assert len(stored.raw_data) == (layer.parameters + 1) // 2, name
    extra = candidate.artifact.size_bytes - build_tiny(ALL4).artifact.size_bytes
    assert 16 * len(LAYERS) <= extra <= 140 * len(LAYERS)


def test_sparse_codebooks_pack_what_is_not_zero(build_learned: Callable[..., Candidate], build_tiny: Build) -> None:
    candidate = build_learned(CODEBOOKS["sparse_codebook"])
    assert candidate.encodings["inner.0"] == candidate.encodings["outer.0"] == "sparse-codebook4"
    assert candidate.encodings["stem.0"] == "codebook4"
    assert candidate.artifact.size_bytes < build_learned(CODEBOOKS["codebook"]).artifact.size_bytes


@pytest.mark.parametrize("name", ["codebook", "sparse_codebook"])
def test_a_target_that_cannot_expand_codebooks_gets_their_levels(
    device: Device, calibration_file: Path, build_learned: Callable[..., Candidate], name: str
) -> None:
    candidate, plain = (build_learned(CODEBOOKS[name], codebooks) for codebooks in (True, False))
    assert {encoding.removeprefix("sparse-") for encoding in plain.encodings.values()} == {"int8"}
    assert not any(tensor.data_type == onnx.TensorProto.UINT4 for tensor in loaded(plain).initializer)
    outputs = [device.outputs(found.artifact.path, calibration_file, 0, 64, 64) for found in (candidate, plain)]
    np.testing.assert_array_equal(*outputs)


def test_more_than_4_bits_have_no_use_for_a_codebook_in_the_file(tiny: Tiny, learned: LayerDatabase, tmp_path: Path) -> None:
    compressed = learned.compress(Policy({"head": LEARNED}))
    head = compressed.layers["head"].weight
    assert isinstance(head, QuantizedTensor)
    model = with_head(compressed, replace(head, bits=6))
    policy, capabilities = Policy({"head": LayerPolicy("learned", 6)}), tiny.components.target.capabilities()
    assert dict(build(tiny.graph, policy, model, capabilities, tmp_path / "file.onnx").encodings) == {"head": "int8"}


def operators(path: Path, folder: Path) -> Counter[str]:
    """What the runtime leaves of a file's operators under its default options."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


class Shuffled(nn.Module):
    """Half of the channels pass by a convolution; then the halves are interleaved, and split again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.right, self.again = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in (self.right, self.again):
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, torch.relu(layer(right))], dim=1)
            x = x.reshape(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
        outputs: Tensor = self.head(x.mean(dim=(2, 3)))
        return outputs


def test_a_shuffle_of_channels_stays_in_integers(tiny: Tiny, device: Device, calibration_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sets = tiny.task.sets
    task = Task(Shuffled(), tiny.task.example_input, sets["calibration"], sets["search"], sets["report"])
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    database = LayerDatabase(graph, Calibration(task, graph, tiny.components, tmp_path), tiny.components, {})
    policy = Policy(dict.fromkeys(graph.layers, INT8))
    capabilities = tiny.components.target.capabilities()
    path = build(graph, policy, database.compress(policy), capabilities, tmp_path / "file.onnx").artifact.path
    assert Counter(op.op_type for op in graph.ops)["Split"] == 2
    left = operators(path, tmp_path)
    assert (left["QuantizeLinear"], left["DequantizeLinear"], left["QLinearConcat"], left["Concat"]) == (1, 0, 2, 0)
    fast, exact = pair(device, path, calibration_file)
    assert snr_db(exact, fast) > 40
    assert snr_db(device.outputs(graph.path, calibration_file, 0, 128, 64), exact) > 25


class Pooled(nn.Module):
    """A pool between the first convolution and the second."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) if self.signed else torch.relu(self.first(x))
        outputs: Tensor = self.head(torch.relu(self.second(nn.functional.max_pool2d(x, 2))).mean(dim=(2, 3)))
        return outputs


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_pool_behind_a_float_layer_pools_floats(
    tiny: Tiny, device: Device, calibration_file: Path, tmp_path: Path, signed: bool, first: bool
) -> None:
    """The runtime's kernel for codes is fast between integer layers only: there, and nowhere else, it is used."""
    torch.manual_seed(0)
    sets = tiny.task.sets
    task = Task(Pooled(signed), tiny.task.example_input, sets["calibration"], sets["search"], sets["report"])
    graph = export(task.model, task.example_input, tmp_path / "fp32.onnx")
    database = LayerDatabase(graph, Calibration(task, graph, tiny.components, tmp_path), tiny.components, {})
    policy = Policy({name: INT8 for name in graph.layers if first or name != "first"})
    capabilities = tiny.components.target.capabilities()
    path = build(graph, policy, database.compress(policy), capabilities, tmp_path / "file.onnx").artifact.path
    left = operators(path, tmp_path)
    assert (left["NhwcMaxPool"], left["MaxPool"]) == ((1, 0) if first else (0, 1))
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    (pool,) = [node for node in optimized.node if node.op_type.endswith("MaxPool")]
    given = {name: node.op_type for node in optimized.node for name in node.output}
    assert given[pool.input[0]] != "QuantizeLinear"
    fast, exact = pair(device, path, calibration_file)
    assert snr_db(exact, fast) > 40
    assert snr_db(device.outputs(graph.path, calibration_file, 0, 128, 64), exact) > 25
