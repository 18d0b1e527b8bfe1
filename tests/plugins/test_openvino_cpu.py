"""The same files in OpenVINO: what it computes in integers, what it folds, and what it must not round."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from autocompress_plugins.openvino_cpu import OpenVino
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress import Budget, CompressedModel, Target, Task, search
from autocompress.accuracy.evaluation import snr_db
from autocompress.building.candidate import Candidate, build
from autocompress.components import Components, QuantizedTensor
from autocompress.config import compose_settings
from autocompress.errors import ConfigError, RuntimeCrashError
from autocompress.measuring.device import Device, open_device
from autocompress.measuring.runner import load_module
from autocompress.network.channels import ChannelGroups
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.policy import LayerPolicy, Policy
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.testing import TargetContract

if TYPE_CHECKING:
    from tests.conftest import Tiny

openvino = pytest.importorskip("openvino", reason="needs the extra: pip install 'autocompress[openvino]'")

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT8, INT4, SPARSE = LayerPolicy("int8", 8), LayerPolicy("int4", 4), LayerPolicy("int8", 8, "sparse", 0.7)
ALL4 = Policy(dict.fromkeys(LAYERS, INT4))
POLICIES = {
    "int8": Policy(dict.fromkeys(LAYERS, INT8)),
    "int4": ALL4,
    "alternating": Policy(dict.fromkeys(LAYERS[::2], INT8)),
    "alternating_int4": Policy(dict.fromkeys(LAYERS[1::2], INT4)),
    "stored_only": Policy(dict.fromkeys(LAYERS, replace(INT4, activation="float"))),
    "cut": Policy(dict.fromkeys(LAYERS, SPARSE)),
}


class TestOpenVino(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return OpenVino()


@pytest.fixture(scope="module")
def session() -> Any:
    return load_module(str(OpenVino().session_file))


@pytest.fixture(scope="module")
def there() -> Iterator[Device]:
    with open_device(OpenVino(), threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def components(tiny: Tiny) -> Components:
    return replace(tiny.components, target=OpenVino())


@pytest.fixture
def make(tiny: Tiny, components: Components, groups: ChannelGroups, tmp_path: Path) -> Callable[[Policy], Candidate]:
    database = LayerDatabase(tiny.graph, tiny.calibration, components, groups.groups)

    def built(policy: Policy) -> Candidate:
        capabilities = components.target.capabilities()
        return build(tiny.graph, policy, database.compress(policy), capabilities, tmp_path / f"{policy.digest}.onnx")

    return built


@pytest.fixture
def make_net(tiny_task: Task, components: Components, tmp_path: Path) -> Callable[[nn.Module], tuple[BaseGraph, Path]]:
    """Another net's graph and its file, each layer and each product of activations in INT8."""

    def built(net: nn.Module) -> tuple[BaseGraph, Path]:
        task = replace(tiny_task, model=net.eval())
        graph = export(net, task.example_input, tmp_path / "fp32.onnx")
        calibration = Calibration(task, graph, components, tmp_path)
        calibration.observe()
        products = (op.name for op in graph.ops if op.op_type == "MatMul")
        policy = Policy(dict.fromkeys(graph.layers, INT8), ops=dict.fromkeys(products, "integer"))
        compressed = LayerDatabase(graph, calibration, components, {}).compress(policy)
        candidate = build(graph, policy, compressed, components.target.capabilities(), tmp_path / "net.onnx")
        return graph, candidate.artifact.path

    return built


def outputs(device: Device, path: Path, inputs: Path, optimize: bool = True) -> NDArray[Any]:
    return device.outputs(path, inputs, 0, 128, 64, optimize=optimize)


@pytest.mark.parametrize("name", POLICIES)
def test_layers_compute_as_decided(
    tiny: Tiny, make: Callable[[Policy], Candidate], there: Device, calibration_file: Path, name: str
) -> None:
    candidate = make(POLICIES[name])
    nodes = {layer.node for layer in tiny.graph.layers.values()}
    assert there.integer_nodes(candidate.artifact.path, calibration_file) & nodes == candidate.integer & nodes


@pytest.mark.parametrize("name", POLICIES)
def test_the_file_gives_what_it_says(
    make: Callable[[Policy], Candidate], there: Device, device: Device, calibration_file: Path, name: str
) -> None:
    """Against the other runtime without its optimizations: sums are exact, and some values round to the next code."""
    path = make(POLICIES[name]).artifact.path
    expected = outputs(device, path, calibration_file, optimize=False)
    for optimize in (True, False):
        found = outputs(there, path, calibration_file, optimize)
        assert snr_db(expected, found) > 35
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98


def test_an_operator_that_moves_codes_needs_no_quantizer_behind_it(
    tiny: Tiny, make: Callable[[Policy], Candidate], there: Device, calibration_file: Path
) -> None:
    candidate = make(POLICIES["int8"])
    nodes = onnx.load(candidate.artifact.path).graph.node
    flat = next(node for node in nodes if node.op_type == "Flatten")
    assert [node.name for node in nodes if flat.output[0] in node.input] == [tiny.graph.layers["head"].node]
    assert tiny.graph.layers["head"].node in there.integer_nodes(candidate.artifact.path, calibration_file)


class Mixer(nn.Module):
    """A product of two activations with a softmax behind it, as in an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1).reshape(-1, 8, 8)
        shares = torch.softmax(self.first(rows) @ self.second(rows).transpose(1, 2), dim=-1)
        outputs: Tensor = self.head((shares @ rows).flatten(1))
        return outputs


def test_products_read_signed_codes(
    make_net: Callable[[nn.Module], tuple[BaseGraph, Path]], there: Device, device: Device, calibration_file: Path
) -> None:
    torch.manual_seed(0)
    graph, path = make_net(Mixer())
    assert sum(op.op_type == "MatMul" for op in graph.ops) == 2
    file = onnx.load(path).graph
    types = {value.name: value.data_type for value in file.initializer}
    zero_points = [types[node.input[2]] for node in file.node if node.op_type == "QuantizeLinear"]
    assert onnx.TensorProto.INT8 in zero_points
    assert set(zero_points) <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    expected = outputs(device, path, calibration_file, optimize=False)
    for optimize in (True, False):
        assert snr_db(expected, outputs(there, path, calibration_file, optimize)) > 30


class Halves(nn.Module):
    """Each unit changes half of its channels, as in ShuffleNet. Of the first result, that half is the larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(1, 8, 3, bias=False)
        self.first, self.second = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(16 * 36, 10)
        self.wide.weight.data *= 8
        self.first.weight.data /= 8

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = torch.cat([self.stem(x), self.wide(x)], 1).chunk(2, 1)
        kept, changed = torch.cat([kept, self.first(changed)], 1).chunk(2, 1)
        outputs: Tensor = self.head(torch.cat([kept, self.second(changed)], 1).flatten(1))
        return outputs


def test_halves_that_are_joined_again_and_again_are_never_rounded_anew(
    make_net: Callable[[nn.Module], tuple[BaseGraph, Path]], there: Device, device: Device, calibration_file: Path
) -> None:
    """One grid, which covers what no later join holds any more, too. Its codes are unsigned, though a product reads them."""
    torch.manual_seed(0)
    net = Halves()
    graph, path = make_net(net)
    joins = [op.name for op in graph.ops if op.op_type == "Concat"]
    file = onnx.load(path).graph
    writers = {node.output[0]: node for node in file.node}
    read = [writers[name] for node in file.node if node.name in joins for name in node.input]
    assert [node.op_type for node in read] == ["DequantizeLinear", "DequantizeLinear", *["Split", "DequantizeLinear"] * 2]
    (scale,) = {node.input[1] for node in read if node.op_type == "DequantizeLinear"}
    (step,) = [onnx.numpy_helper.to_array(value) for value in file.initializer if value.name == scale]
    with torch.no_grad():
        wide = net.wide(torch.from_numpy(np.load(calibration_file)))
    assert 255 * step > 0.95 * float(wide.max() - wide.min())
    expected = outputs(device, path, calibration_file, optimize=False)
    for optimize in (True, False):
        assert snr_db(expected, outputs(there, path, calibration_file, optimize)) > 30


def test_a_swish_is_computed_on_a_convolutions_sums(
    make_net: Callable[[nn.Module], tuple[BaseGraph, Path]], there: Device, device: Device, calibration_file: Path
) -> None:
    """No range stands before it, and the convolutions around it are integer."""
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1), nn.Hardswish()]
    graph, path = make_net(nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))
    nodes = {layer.node for layer in graph.layers.values()}
    assert there.integer_nodes(path, calibration_file) & nodes == nodes
    assert read_in_codes(path) == {"Conv", "Flatten", "Gemm"}
    expected = outputs(device, path, calibration_file, optimize=False)
    assert snr_db(expected, outputs(there, path, calibration_file)) > 35


def read_in_codes(path: Path) -> set[str]:
    """Types of the operators that read dequantized values."""
    nodes = onnx.load(path).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return {node.op_type for node in nodes if dequantized & set(node.input)}


def stored_as(compressed: CompressedModel, change: Callable[[QuantizedTensor], QuantizedTensor]) -> CompressedModel:
    def changed(layer: Any) -> Any:
        return replace(layer, weight=change(layer.weight)) if isinstance(layer.weight, QuantizedTensor) else layer

    return replace(compressed, layers={name: changed(layer) for name, layer in compressed.layers.items()})


def in_bytes(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, bits=8)


def in_a_table(weight: QuantizedTensor) -> QuantizedTensor:
    return replace(weight, codes=weight.codes + 8, codebook=torch.arange(-8, 8, dtype=torch.int8))


FORMS: Mapping[str, tuple[str, Callable[[QuantizedTensor], QuantizedTensor]]] = {
    "int4": ("int4", lambda weight: weight),
    "codebook": ("codebook4", in_a_table),
}


@pytest.mark.parametrize("form", FORMS)
def test_short_codes_are_widened_when_the_file_is_opened(
    tiny: Tiny, make: Callable[[Policy], Candidate], there: Device, session: Any, calibration_file: Path, form: str
) -> None:
    """The very outputs of the same weights stored in bytes, from as many operators."""
    candidate = make(ALL4)
    assert all(not layer.weight.zero_point.any() for layer in candidate.compressed.layers.values())  # type: ignore[union-attr]
    capabilities, folder = OpenVino().capabilities(), candidate.artifact.path.parent
    encoding, change = FORMS[form]
    plain = build(tiny.graph, ALL4, stored_as(candidate.compressed, in_bytes), capabilities, folder / "plain.onnx")
    short = build(tiny.graph, ALL4, stored_as(candidate.compressed, change), capabilities, folder / "short.onnx")
    assert set(plain.encodings.values()) == {"int8"}
    assert set(short.encodings.values()) == {encoding}
    found, expected = (outputs(there, x.artifact.path, calibration_file) for x in (short, plain))
    np.testing.assert_array_equal(found, expected)
    assert operators(session, short.artifact.path) == operators(session, plain.artifact.path)


def operators(session: Any, path: Path) -> list[str]:
    """Types of what runs, in its order."""
    compiled = session._compiled(str(path), 1, True).graph.get_runtime_model()
    types = [operator.get_rt_info()["layerType"].astype(str) for operator in compiled.get_ordered_ops()]
    return [name for name in types if name != "Const"]


def test_files_with_packed_sparse_weights_do_not_run(
    tiny: Tiny, make: Callable[[Policy], Candidate], there: Device, calibration_file: Path
) -> None:
    """Which is why they are not offered; once this fails they may be."""
    candidate = make(POLICIES["cut"])
    assert set(candidate.encodings.values()) == {"int8"}
    able = replace(OpenVino().capabilities(), packed_sparse=True)
    path = candidate.artifact.path.with_name("packed.onnx")
    packed = build(tiny.graph, candidate.policy, candidate.compressed, able, path)
    assert any(how.startswith("sparse") for how in packed.encodings.values())
    with pytest.raises(RuntimeCrashError, match="target openvino: integer_nodes: RuntimeError"):
        there.integer_nodes(path, calibration_file)


def product_file(path: Path) -> tuple[NDArray[np.int8], float]:
    """A product with a matrix that is stored in codes."""
    codes, scale = np.random.default_rng(0).integers(-127, 128, (128, 64)).astype(np.int8), 0.01
    node = onnx.helper.make_node
    parts = [
        node("Cast", ["codes"], ["values"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["values", "scale"], ["weight"]),
        node("MatMul", ["input", "weight"], ["output"]),
    ]
    stored = [onnx.numpy_helper.from_array(codes, "codes"), onnx.numpy_helper.from_array(np.float32(scale), "scale")]
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("input", 1, ["N", 128]), ("output", 1, ["N", 64]))]
    graph = onnx.helper.make_graph(parts, "product", ends[:1], ends[1:], stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    return codes, scale


def test_what_is_only_stored_in_codes_computes_in_float(session: Any, tmp_path: Path) -> None:
    """By default the runtime rounds the activations of such a product to 8 bits, which one large value makes coarse."""
    codes, scale = product_file(tmp_path / "product.onnx")
    inputs = np.random.default_rng(1).normal(size=(3, 128)).astype(np.float32)
    inputs[:, 5] = 1000
    found = session.load(str(tmp_path / "product.onnx"), 1, True)([inputs])[0]
    expected = inputs.astype(np.float64) @ (codes * scale)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_float_is_float32(tiny: Tiny, session: Any) -> None:
    """A processor with bfloat16 would use that."""
    inputs = torch.from_numpy(tiny.task.sets["calibration"].inputs[:8])
    with torch.no_grad():
        expected = tiny.task.model(inputs).numpy()
    np.testing.assert_allclose(session.load(str(tiny.graph.path), 1, True)([inputs.numpy()])[0], expected, atol=1e-4)
    compiled = session._compiled(str(tiny.graph.path), 1, True).graph
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_several_examples_are_computed_as_each_alone(make: Callable[[Policy], Candidate], session: Any, tiny: Tiny) -> None:
    run = session.load(str(make(POLICIES["int8"]).artifact.path), 1, True)
    inputs = tiny.task.sets["calibration"].inputs[:5]
    alone = np.concatenate([run([inputs[at : at + 1]])[0] for at in range(5)])
    np.testing.assert_array_equal(run([inputs])[0], alone)


def test_a_changed_file_is_opened_anew(session: Any, tiny: Tiny, tmp_path: Path) -> None:
    """Compiled graphs are kept, but not under the path alone."""
    path, inputs = tmp_path / "product.onnx", np.ones((1, 128), np.float32)
    codes, scale = product_file(path)
    np.testing.assert_allclose(session.load(str(path), 1, True)([inputs])[0][0], codes.sum(0) * scale, rtol=1e-4, atol=1e-4)
    model = onnx.load(path)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.float32(2 * scale), "scale"))
    onnx.save(model, path)
    np.testing.assert_allclose(session.load(str(path), 1, True)([inputs])[0][0], 2 * codes.sum(0) * scale, rtol=1e-4, atol=1e-4)


def test_without_the_extra_the_target_says_what_to_install(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else find(name, *rest))
    with pytest.raises(ConfigError) as error:
        compose_settings(["target=openvino"], tiny.registry)
    advice = "pip install 'autocompress[openvino]'"
    assert str(error.value) == f"target.openvino: OpenVINO is not installed; add it with: {advice}"


def test_a_search_ends_with_a_file_that_openvino_runs(tiny_task: Any, tmp_path: Path) -> None:
    overrides = [
        "target=openvino",
        "quantizer=[int8]",
        "pruner=[]",
        "tracking=[]",
        "timing.seconds=0.05",
        "search.start=uniform",
    ]
    result = search(tiny_task, Budget(size_ratio=0.5), trials=2, output_dir=tmp_path, overrides=overrides)
    assert result.status == "feasible"
    assert result.versions["runtime"] == f"openvino {openvino.__version__.split('-')[0]}"
    assert result.minimum_runtime["openvino"] == "2026.4.1"


HEARS = """
import gc, signal, sys
from pathlib import Path
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress_plugins.openvino_cpu import OpenVino
from autocompress.measuring.runner import load_module, load_session
sessions = [load_session(OpenVino(), Path(path), threads=1) for path in sys.argv[1:]]
load_module(str(OnnxRuntime().session_file))
while sessions:
    del sessions[0]
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


def test_signals_are_heard_after_sessions_ended(make: Callable[[Policy], Candidate]) -> None:
    """The runtime frees the stack that signals are heard on, unless its first object is also its last."""
    paths = [str(make(Policy(dict.fromkeys(LAYERS[:count], INT8))).artifact.path) for count in (1, 2)]
    found = subprocess.run([sys.executable, "-c", HEARS, *paths], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "heard\n"), found.stderr
