from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from autocompress_plugins.mean_rounding import MeanRounding
from safetensors.torch import save_file

from autocompress.artifact import sha256_of
from autocompress.building.candidate import (
    Candidate,
    build,
    check_state,
    layer_rows,
    load_state,
    placement_warnings,
    save_state,
)
from autocompress.components import QuantizedTensor
from autocompress.errors import PolicyError
from autocompress.measuring.device import Device
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.compress import LayerDatabase

if TYPE_CHECKING:
    from tests.conftest import Tiny

Build = Callable[[Policy], Candidate]

LAYERS = ("stem.0", "inner.0", "outer.0", "depthwise.0", "pointwise", "head")
INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
HALF = ChannelPolicy("sparse", 0.5)
MIXED = Policy(
    {
        "stem.0": INT8,
        "inner.0": LayerPolicy("int4", 4, "sparse", 0.7),
        "outer.0": LayerPolicy("int8", 8, "sparse", 0.7),
        "depthwise.0": LayerPolicy(pruner="sparse", sparsity=0.5),
        "head": INT4,
    }
)
POLICIES = {
    "nothing": Policy(),
    "int8": Policy(dict.fromkeys(LAYERS, INT8)),
    "mixed": MIXED,
    "cut": Policy(MIXED.layers, {"inner.0": HALF, "pointwise": HALF}),
}


# --- the file ---


def test_the_artifact_describes_the_file(build_tiny: Build) -> None:
    artifact = build_tiny(MIXED).artifact
    assert artifact.size_bytes == len(artifact.path.read_bytes())
    assert artifact.sha256 == sha256_of(artifact.path)
    assert artifact.format == "onnx"


@pytest.mark.parametrize("name", POLICIES)
def test_state_builds_the_same_bytes_again(tiny: Tiny, build_tiny: Build, tmp_path: Path, name: str) -> None:
    candidate = build_tiny(POLICIES[name])
    save_state(candidate.compressed, tmp_path / "state.safetensors")
    again = load_state(tmp_path / "state.safetensors")
    capabilities = tiny.components.target.capabilities()
    rebuilt = build(tiny.graph, candidate.policy, again, capabilities, tmp_path / "again.onnx")
    assert rebuilt.artifact.sha256 == candidate.artifact.sha256
    assert rebuilt.encodings == candidate.encodings


def test_state_holds_every_tensor_exactly(build_tiny: Build, tmp_path: Path) -> None:
    saved = build_tiny(POLICIES["cut"]).compressed
    save_state(saved, tmp_path / "state.safetensors")
    again = load_state(tmp_path / "state.safetensors")
    assert again.ranges == saved.ranges
    assert set(again.kept) == set(saved.kept) == {"inner.0", "pointwise"}
    assert all(torch.equal(again.kept[name], kept) for name, kept in saved.kept.items())
    assert set(again.layers) == set(saved.layers) == set(LAYERS)
    for name, layer in saved.layers.items():
        found = again.layers[name]
        for one, other in ((layer.bias, found.bias), (layer.mask, found.mask), (layer.dense(), found.dense())):
            assert (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))
        assert isinstance(found.weight, QuantizedTensor) == isinstance(layer.weight, QuantizedTensor)
        if isinstance(layer.weight, QuantizedTensor):
            assert isinstance(found.weight, QuantizedTensor)
            assert torch.equal(found.weight.codes, layer.weight.codes)
            assert torch.equal(found.weight.zero_point, layer.weight.zero_point)
            assert (found.weight.axis, found.weight.bits) == (layer.weight.axis, layer.weight.bits)


def test_state_holds_codebooks_and_blocks(tiny: Tiny, database: LayerDatabase, tmp_path: Path) -> None:
    plain = database.compress(Policy({"inner.0": INT4, "head": INT8}))
    inner, head = (plain.layers[name].weight for name in ("inner.0", "head"))
    assert isinstance(inner, QuantizedTensor)
    assert isinstance(head, QuantizedTensor)
    table = torch.tensor([-90, -20, 0, 3, 127], dtype=torch.int8)
    named = replace(inner, codes=(inner.codes.int() % 5).char(), codebook=table)
    blocks = replace(
        head, scale=head.scale[:, None].repeat(1, 2), zero_point=head.zero_point[:, None].repeat(1, 2), group_size=16
    )
    saved = replace(
        plain,
        layers={name: replace(plain.layers[name], weight=weight) for name, weight in (("inner.0", named), ("head", blocks))},
    )
    save_state(saved, tmp_path / "state.safetensors")
    again = load_state(tmp_path / "state.safetensors").layers
    for name, expected in (("inner.0", named), ("head", blocks)):
        weight = again[name].weight
        assert isinstance(weight, QuantizedTensor)
        assert torch.equal(weight.dequantize(), expected.dequantize())
        assert (weight.axis, weight.bits, weight.group_size) == (expected.axis, expected.bits, expected.group_size)
        assert (weight.codebook is None) == (expected.codebook is None)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path)


@pytest.mark.parametrize("spoil", [truncated, empty, missing, another])
def test_a_file_that_is_not_a_state_is_refused(build_tiny: Build, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "state.safetensors"
    save_state(build_tiny(MIXED).compressed, path)
    spoil(path)
    with pytest.raises(PolicyError, match=f"^state {path}: not the state of a policy: "):
        load_state(path)


def test_building_is_deterministic(tiny: Tiny, database: LayerDatabase, build_tiny: Build, tmp_path: Path) -> None:
    first = build_tiny(MIXED)
    compressed = database.compress(Policy(dict([*MIXED.layers.items()][::-1])))
    again = build(tiny.graph, MIXED, compressed, tiny.components.target.capabilities(), tmp_path / "deeper" / "again.onnx")
    assert again.artifact.sha256 == first.artifact.sha256


# --- the per-layer table ---


def test_rows_show_the_decisions_and_the_figures_of_fp32(tiny: Tiny, build_tiny: Build) -> None:
    rows = {row.layer: row for row in layer_rows(tiny.graph, build_tiny(MIXED))}
    assert list(rows) == list(LAYERS)
    decisions = {name: (row.quantizer, row.bits, row.pruner, row.structure, row.encoding) for name, row in rows.items()}
    assert decisions == {
        "stem.0": ("int8", 8, "", "", "int8"),
        "inner.0": ("int4", 4, "sparse", "unstructured", "sparse-int4"),
        "outer.0": ("int8", 8, "sparse", "unstructured", "sparse-int8"),
        "depthwise.0": ("float", 32, "sparse", "unstructured", "float32"),
        "pointwise": ("float", 32, "", "", "float32"),
        "head": ("int4", 4, "", "", "int4"),
    }
    for name, row in rows.items():
        weight = tiny.graph.initializers[f"{name}.weight"]
        assert (row.kind, row.parameters, row.macs) == (tiny.graph.layers[name].kind, weight.size, tiny.graph.layers[name].macs)
        assert (row.weight_minimum, row.weight_maximum) == (weight.min(), weight.max())
        assert row.weight_mean == pytest.approx(weight.astype(np.float64).mean(), abs=1e-6)


def test_rows_count_the_zeros_that_the_file_holds(tiny: Tiny, build_tiny: Build) -> None:
    """Those that were asked for and those that rounding adds; zeros of layers that were not pruned are no sparsity."""
    candidate = build_tiny(MIXED)
    for row in layer_rows(tiny.graph, candidate):
        asked = MIXED.layers.get(row.layer, LayerPolicy()).sparsity
        if not asked:
            assert row.sparsity == 0
            continue
        weight = candidate.compressed.layers[row.layer].weight
        values = (weight.codes if isinstance(weight, QuantizedTensor) else weight).numpy()
        assert row.sparsity == pytest.approx((values == 0).mean())
        assert asked - 0.5 / row.parameters <= row.sparsity < asked + 0.05


CODES = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4})


def stored_bytes(graph: onnx.GraphProto, node: str) -> int:
    """Bytes of the initializers that a layer's codes, or its float weight, are computed from."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    (weight,) = (each.input[1] for each in graph.node if each.name == node)
    if weight in initializers:
        return len(initializers[weight].raw_data)
    wanted, total = [made_by[weight].input[0]], set()
    while wanted:
        name = wanted.pop()
        if name in made_by:
            wanted += list(made_by[name].input)
        elif initializers[name].data_type in CODES:
            total.add(name)
    return sum(len(initializers[name].raw_data) for name in total)


@pytest.mark.parametrize("name", ["mixed", "cut"])
def test_stored_bytes_are_those_in_the_file(tiny: Tiny, build_tiny: Build, name: str) -> None:
    candidate = build_tiny(POLICIES[name])
    graph = onnx.load(candidate.artifact.path).graph
    for row in layer_rows(tiny.graph, candidate):
        found = stored_bytes(graph, tiny.graph.layers[row.layer].node)
        shared = 8 + 1 + 1 if row.encoding.startswith("sparse") else 0  # places of bits, the mask for one, the leading zero
        assert row.stored_bytes <= found <= row.stored_bytes + shared, row.layer


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_stored_bytes_of_a_codebook_are_those_in_the_file(tiny: Tiny, tmp_path: Path, sparsity: float) -> None:
    components = replace(tiny.components, quantizers={"learned": MeanRounding("kmeans")})
    policy = Policy({"inner.0": LayerPolicy("learned", 4, "sparse" if sparsity else None, sparsity)})
    compressed = LayerDatabase(tiny.graph, tiny.calibration, components, {}).compress(policy)
    candidate = build(tiny.graph, policy, compressed, tiny.components.target.capabilities(), tmp_path / "file.onnx")
    (row,) = (row for row in layer_rows(tiny.graph, candidate) if row.layer == "inner.0")
    found = stored_bytes(onnx.load(candidate.artifact.path).graph, tiny.graph.layers["inner.0"].node)
    shared = 8 + 1 + 1 if sparsity else 0  # places of bits, the mask for one, the leading zero
    assert row.encoding == ("sparse-codebook4" if sparsity else "codebook4")
    assert row.stored_bytes <= found <= row.stored_bytes + shared


# --- what the runtime did with it ---


def test_no_warning_when_the_runtime_did_as_it_was_told(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build
) -> None:
    candidate = build_tiny(MIXED)
    assert placement_warnings(tiny.graph, candidate, device.integer_nodes(candidate.artifact.path, calibration_file)) == ()


def test_a_layer_that_the_runtime_computes_otherwise_is_reported(tiny: Tiny, build_tiny: Build) -> None:
    candidate = build_tiny(MIXED)
    nodes = {name: layer.node for name, layer in tiny.graph.layers.items()}
    changed = (candidate.integer - {nodes["stem.0"]}) | {nodes["pointwise"]}
    assert placement_warnings(tiny.graph, candidate, changed) == (
        "layer stem.0: meant to be integer, the runtime computes it in float",
        "layer pointwise: meant to be float, the runtime computes it in integer",
    )


def test_a_bias_off_the_grid_is_noticed(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Build, tmp_path: Path
) -> None:
    """The runtime refuses to fuse such a layer without a word."""
    candidate = build_tiny(POLICIES["int8"])
    model = onnx.load(candidate.artifact.path)
    (convolution,) = (node for node in model.graph.node if node.name == tiny.graph.layers["inner.0"].node)
    (bias,) = (node for node in model.graph.node if convolution.input[2] in node.output)
    for tensor in model.graph.initializer:
        if tensor.name == bias.input[1]:
            scale = onnx.numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    onnx.save(model, tmp_path / "off.onnx")
    found = device.integer_nodes(tmp_path / "off.onnx", calibration_file)
    assert placement_warnings(tiny.graph, candidate, found) == (
        "layer inner.0: meant to be integer, the runtime computes it in float",
    )


def test_rows_of_a_policy_that_leaves_layers_alone(tiny: Tiny, build_tiny: Build) -> None:
    rows = {row.layer: row for row in layer_rows(tiny.graph, build_tiny(Policy(channels={"inner.0": HALF})))}
    assert rows["stem.0"].stored_bytes == 4 * 144
    assert rows["inner.0"].stored_bytes == 4 * 16 * 16 * 9
    assert rows["inner.0"].parameters == 32 * 16 * 9


EDITED = {
    "quantizes another layer": (Policy({**MIXED.layers, "pointwise": INT8}), "no codes of the layers pointwise"),
    "prunes another layer": (
        Policy({**MIXED.layers, "pointwise": LayerPolicy(pruner="sparse", sparsity=0.5)}),
        "no weights of the layers pointwise",
    ),
    "keeps a layer": (Policy({"stem.0": INT8}), ""),
    "cuts channels": (Policy(MIXED.layers, {"pointwise": HALF}), "no channels of the groups pointwise"),
    "names a layer that is not there": (Policy({**MIXED.layers, "neck": LayerPolicy()}), "no layers of the model neck"),
    "asks what the target cannot": (replace(MIXED, ops={"n99": "integer"}), "policy: operator n99: this target offers"),
    "rounds another tensor": (replace(MIXED, tensors={"output": 8}), "no ranges of the tensors output"),
}


@pytest.mark.parametrize(("edited", "words"), EDITED.values(), ids=EDITED)
def test_a_policy_that_the_state_was_not_made_for_is_refused(
    tiny: Tiny, database: LayerDatabase, edited: Policy, words: str
) -> None:
    capabilities, compressed = tiny.components.target.capabilities(), database.compress(MIXED)
    check_state(tiny.graph, MIXED, compressed, capabilities)
    if words:
        with pytest.raises(PolicyError, match=words):
            check_state(tiny.graph, edited, compressed, capabilities)
