"""Every way to store a weight gives the same integers, bit for bit, in each runtime that runs the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from autocompress_plugins.affine import Int8
from autocompress_plugins.mean_rounding import MeanRounding
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress_plugins.openvino_cpu import OpenVino
from numpy.typing import NDArray
from onnx import TensorProto, helper

from autocompress import LayerPolicy, Policy, QuantizedTensor, Target
from autocompress.building.blocks import pack_blocks
from autocompress.building.candidate import Candidate, build
from autocompress.measuring.runner import load_session
from autocompress.tensors.compress import LayerDatabase
from autocompress.testing.layers import make_layer, make_stats

if TYPE_CHECKING:
    from tests.conftest import Tiny

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
CHOICES = {
    "int8": LayerPolicy("int8", 8),
    "int4": LayerPolicy("int4", 4),
    "codebook4": LayerPolicy("learned", 4),
    "sparse-int8": LayerPolicy("int8", 8, "sparse", 0.7),
    "sparse-int4": LayerPolicy("int4", 4, "sparse", 0.7),
    "sparse-codebook4": LayerPolicy("learned", 4, "sparse", 0.7),
    "shifted": LayerPolicy("centred", 4),
}
RUNTIMES: dict[str, Target] = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino()}


@pytest.fixture(scope="module")
def databases(tiny: Tiny) -> dict[str, LayerDatabase]:
    """For each runtime."""
    quantizers = {"learned": MeanRounding("kmeans"), "centred": MeanRounding("uniform")}
    components = replace(tiny.components, quantizers={**tiny.components.quantizers, **quantizers})
    targets = {name: replace(components, target=target) for name, target in RUNTIMES.items()}
    return {name: LayerDatabase(tiny.graph, tiny.calibration, own, {}) for name, own in targets.items()}


def delivered(tiny: Tiny, database: LayerDatabase, policy: Policy, target: Target, folder: Path) -> Candidate:
    return build(tiny.graph, policy, database.compress(policy), target.capabilities(), folder / f"{policy.digest}.onnx")


def read(path: Path, tensors: dict[str, int], target: Target, example: NDArray[Any]) -> list[NDArray[Any]]:
    """What a runtime, under its default options, has in inner tensors of a file (name to ONNX type)."""
    model = onnx.load(path)
    del model.graph.output[:]
    for place, (name, kind) in enumerate(tensors.items()):
        model.graph.node.append(helper.make_node("Identity", [name], [f"read{place}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"read{place}", kind, None))
    onnx.save(model, path.with_suffix(".read.onnx"))
    return load_session(target, path.with_suffix(".read.onnx"), threads=1)([example])


def weight_of(graph: onnx.GraphProto, node: str) -> onnx.NodeProto:
    """The operator that gives a layer's weight."""
    producers = {name: node for node in graph.node for name in node.output}
    found = next(one for one in graph.node if one.name == node)
    return producers[found.input[1]]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("encoding", CHOICES)
def test_integer_layers(tiny: Tiny, databases: dict[str, LayerDatabase], tmp_path: Path, encoding: str, runtime: str) -> None:
    """The codes that integer kernels take, and what they stand for."""
    target = RUNTIMES[runtime]
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    if encoding.startswith("sparse") and not target.capabilities().packed_sparse:
        pytest.skip(f"{runtime} gets no packed weights")
    candidate = delivered(tiny, databases[runtime], Policy(dict.fromkeys(LAYERS, CHOICES[encoding])), target, tmp_path)
    stored = set(candidate.encodings.values())
    assert encoding in stored or (encoding == "shifted" and stored == {"int4"})
    graph = onnx.load(candidate.artifact.path).graph
    scaled = {name: weight_of(graph, tiny.graph.layers[name].node) for name in LAYERS}
    assert {node.op_type for node in scaled.values()} == {"DequantizeLinear"}
    asked = {node.input[0]: TensorProto.INT8 for node in scaled.values()}
    asked |= {node.output[0]: TensorProto.FLOAT for node in scaled.values()}
    found = read(candidate.artifact.path, asked, target, tiny.task.sets["calibration"].inputs[:1])
    for name, codes, values in zip(LAYERS, found, found[len(LAYERS) :], strict=False):
        weight = candidate.compressed.layers[name].weight
        assert isinstance(weight, QuantizedTensor)
        assert codes.dtype == np.int8
        expected = weight.numbers if encoding == "shifted" else weight.levels
        np.testing.assert_array_equal(codes, expected.numpy(), err_msg=name)
        np.testing.assert_array_equal(values, weight.dequantize().numpy(), err_msg=name)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("encoding", ["int8", "int4", "codebook4", "sparse-int8", "shifted"])
def test_layers_that_are_only_stored_in_codes(
    tiny: Tiny, databases: dict[str, LayerDatabase], tmp_path: Path, encoding: str, runtime: str
) -> None:
    """The float32 weights that float kernels take."""
    target = RUNTIMES[runtime]
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    choice = replace(CHOICES[encoding], activation="float")
    candidate = delivered(tiny, databases[runtime], Policy(dict.fromkeys(LAYERS, choice)), target, tmp_path)
    graph = onnx.load(candidate.artifact.path).graph
    asked = {weight_of(graph, tiny.graph.layers[name].node).output[0]: TensorProto.FLOAT for name in LAYERS}
    found = read(candidate.artifact.path, asked, target, tiny.task.sets["calibration"].inputs[:1])
    for name, values in zip(LAYERS, found, strict=True):
        weight = candidate.compressed.layers[name].weight
        assert isinstance(weight, QuantizedTensor)
        np.testing.assert_array_equal(values, weight.dequantize().numpy(), err_msg=name)


@pytest.mark.parametrize(("bits", "size", "symmetric"), [(8, 16, True), (8, 32, False), (4, 16, True), (4, 32, False)])
def test_blocks_of_a_matrix(tmp_path: Path, bits: int, size: int, symmetric: bool) -> None:
    """The identity times the matrix is the matrix: each sum has one term that is not 0."""
    weight = torch.randn(24, 72, generator=torch.Generator().manual_seed(bits))
    quantizer = Int8(bits, symmetric=symmetric, group_size=size)
    quantized = quantizer.quantize(weight, bits, make_stats(weight, make_layer((24, 72), "linear")))
    blocks = pack_blocks(quantized)
    parts = {"codes": blocks.codes, "scale": blocks.scale, "zero_point": blocks.zero_point}
    given = [onnx.numpy_helper.from_array(part, name) for name, part in parts.items() if part is not None]
    sizes = {"K": 72, "N": 24, "bits": blocks.bits, "block_size": blocks.size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *(part.name for part in given)], ["y"], domain="com.microsoft", **sizes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in (("x", 72), ("y", 24))]
    graph = helper.make_graph([node], "blocks", ends[:1], ends[1:], given)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "blocks.onnx")
    session: Callable[[Any], list[NDArray[Any]]] = load_session(OnnxRuntime(), tmp_path / "blocks.onnx", threads=1)
    (found,) = session([np.eye(72, dtype=np.float32)])
    np.testing.assert_array_equal(found.T, quantized.dequantize().numpy())
