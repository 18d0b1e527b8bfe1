"""Builds the file of a policy, and saves the state that builds the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autocompress.artifact import Artifact
from autocompress.building.lowering import lower
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.errors import PolicyError
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.onnx_file import save
from autocompress.network.placement import check_decisions, place
from autocompress.plain import from_plain
from autocompress.policy import Activation, LayerPolicy, Policy
from autocompress.record import LayerRow
from autocompress.tensors.compress import CompressedModel
from autocompress.tensors.ranges import Range


@dataclass(frozen=True)
class Candidate:
    """A built file and what it was built from.

    Attributes:
        integer: names of the nodes that are meant to compute in integers.
        encodings: layer to how its weight is stored.
        modes: layer whose weight has codes to how it computes.
        quantized: activation tensor to the tensor whose grid it uses.
    """

    artifact: Artifact
    policy: Policy
    compressed: CompressedModel
    integer: frozenset[str]
    encodings: Mapping[str, str]
    modes: Mapping[str, Activation] = field(default_factory=dict)
    quantized: Mapping[str, str] = field(default_factory=dict)


def build(graph: BaseGraph, policy: Policy, compressed: CompressedModel, capabilities: Capabilities, path: Path) -> Candidate:
    """Write the file of a policy."""
    placement = place(graph, policy, capabilities)
    lowered = lower(graph, compressed, placement, capabilities)
    save(lowered.model, path)
    parts = (placement.integer, lowered.encodings, placement.modes, placement.quantized)
    return Candidate(Artifact.of(path, "onnx"), policy, compressed, *parts)


def placement_warnings(graph: BaseGraph, candidate: Candidate, integer: frozenset[str]) -> tuple[str, ...]:
    """Layers that the runtime computes otherwise than the policy says.

    Args:
        integer: names of the nodes that the optimized graph computes in integers.
    """
    found = []
    for layer in graph.layers.values():
        meant, is_so = layer.node in candidate.integer, layer.node in integer
        if meant != is_so:
            words = ("integer", "float") if meant else ("float", "integer")
            found.append(f"layer {layer.name}: meant to be {words[0]}, the runtime computes it in {words[1]}")
    return tuple(found)


def layer_rows(graph: BaseGraph, candidate: Candidate) -> Sequence[LayerRow]:
    """The per-layer table."""
    return tuple(_row(graph, candidate, name) for name in graph.layers)


def _row(graph: BaseGraph, candidate: Candidate, name: str) -> LayerRow:
    layer, policy = graph.layers[name], candidate.policy.layers.get(name, LayerPolicy())
    weight = graph.initializers[layer.weight]
    encoding = candidate.encodings.get(name, "float32")
    return LayerRow(
        layer=name,
        kind=layer.kind,
        parameters=layer.parameters,
        macs=_macs(layer, candidate.compressed.layers.get(name)),
        quantizer=policy.quantizer or "float",
        bits=policy.bits,
        pruner=policy.pruner or "",
        sparsity=_sparsity(policy, candidate.compressed.layers.get(name)),
        encoding=encoding,
        stored_bytes=_stored_bytes(candidate.compressed.layers.get(name), encoding, layer.parameters),
        weight_minimum=float(weight.min()),
        weight_maximum=float(weight.max()),
        weight_mean=float(weight.mean()),
        structure=policy.structure if policy.prunes else "",
        activation=candidate.modes.get(name, ""),
        observer=candidate.policy.observers.get(candidate.quantized.get(layer.input, ""), ""),
    )


def _sparsity(policy: LayerPolicy, compressed: CompressedLayer | None) -> float:
    """Share of a pruned layer's weights that the file holds as 0."""
    if not policy.prunes or compressed is None:
        return 0.0
    return float((compressed.dense() == 0).double().mean())


def _macs(layer: Layer, compressed: CompressedLayer | None) -> int:
    """Multiply-accumulates of what is left of a layer's channels, for one example."""
    left = layer.parameters if compressed is None else compressed.dense().numel()
    return layer.macs * left // max(1, layer.parameters)


def _stored_bytes(layer: CompressedLayer | None, encoding: str, parameters: int) -> int:
    """Bytes of codes, codebook and mask as stored, or of float values."""
    if layer is None:
        return 4 * parameters
    if not isinstance(layer.weight, QuantizedTensor):
        return 4 * layer.weight.numel()
    bits = 4 if encoding.endswith("4") else 8
    table = layer.weight.codebook.numel() if layer.weight.codebook is not None and "codebook" in encoding else 0
    levels = layer.weight.levels
    if encoding.startswith("sparse"):
        return table + (levels.numel() + 7) // 8 + (int(levels.count_nonzero()) * bits + 7) // 8
    return table + (levels.numel() * bits + 7) // 8


def save_state(compressed: CompressedModel, path: Path) -> None:
    """Save every tensor that determines the file: codes or values, codebooks, scales, biases, masks, ranges, kept channels."""
    tensors: dict[str, Tensor] = {}
    axes: dict[str, tuple[int, int, int | None]] = {}
    for name, layer in compressed.layers.items():
        if isinstance(layer.weight, QuantizedTensor):
            weight = layer.weight
            tensors |= {f"codes:{name}": weight.codes, f"scale:{name}": weight.scale, f"zero_point:{name}": weight.zero_point}
            tensors |= {} if weight.codebook is None else {f"codebook:{name}": weight.codebook}
            axes[name] = (weight.axis, weight.bits, weight.group_size)
        else:
            tensors[f"weight:{name}"] = layer.weight
        optional = {f"bias:{name}": layer.bias, f"mask:{name}": layer.mask}
        tensors |= {key: tensor for key, tensor in optional.items() if tensor is not None}
    tensors |= {f"kept:{name}": kept for name, kept in compressed.kept.items()}
    ranges = {name: astuple(grid) for name, grid in compressed.ranges.items()}
    metadata = {"axes": json.dumps(axes, sort_keys=True), "ranges": json.dumps(ranges, sort_keys=True)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def load_state(path: Path) -> CompressedModel:
    """Inverse of `save_state`.

    Raises:
        PolicyError: the file is missing or is not such a state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            metadata = {key: json.loads(text) for key, text in file.metadata().items()}
        return _loaded(tensors, metadata)
    except Exception as error:
        raise PolicyError(f"state {path}: not the state of a policy: {' '.join(str(error).split())}") from error


def _loaded(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> CompressedModel:
    axes = from_plain(Mapping[str, tuple[int, int, int | None]], metadata["axes"])
    ranges = from_plain(Mapping[str, tuple[float, int, int, bool]], metadata["ranges"])
    names = dict.fromkeys(key.split(":", 1)[1] for key in tensors if key.startswith(("codes:", "weight:")))
    return CompressedModel(
        layers={name: _loaded_layer(name, tensors, axes) for name in names},
        ranges={name: Range(*values) for name, values in ranges.items()},
        kept={key.removeprefix("kept:"): tensor for key, tensor in tensors.items() if key.startswith("kept:")},
    )


def check_state(graph: BaseGraph, policy: Policy, compressed: CompressedModel, capabilities: Capabilities) -> None:
    """Refuse decisions that the tensors were not made for, as after a policy was edited.

    Raises:
        PolicyError: it names what the model does not have or the target cannot compute, or what the state has no tensors for.
    """
    check_decisions(graph, policy, capabilities)
    coded = {name for name, layer in compressed.layers.items() if isinstance(layer.weight, QuantizedTensor)}
    grids = set(place(graph, policy, capabilities).quantized.values())
    parts = {
        "codes of the layers": ({name for name, layer in policy.layers.items() if layer.quantizer}, coded),
        "weights of the layers": (coded | {name for name, layer in policy.layers.items() if layer.prunes}, compressed.layers),
        "channels of the groups": ({name for name, group in policy.channels.items() if group.prunes}, compressed.kept),
        "ranges of the tensors": (grids, compressed.ranges),
        "layers of the model": ({*policy.layers, *compressed.layers}, graph.layers),
    }
    for what, (asked, there) in parts.items():
        if missing := sorted(set(asked) - set(there)):
            raise PolicyError(
                f"policy: no {what} {', '.join(missing[:3])}: it is not what the state was saved with; to try other decisions, "
                "search with search.seeds=[PATH]"
            )


def _loaded_layer(name: str, tensors: Mapping[str, Tensor], axes: Mapping[str, tuple[int, int, int | None]]) -> CompressedLayer:
    weight: QuantizedTensor | torch.Tensor
    if f"codes:{name}" in tensors:
        codes, scale, zero_point = (tensors[f"{part}:{name}"] for part in ("codes", "scale", "zero_point"))
        axis, bits, group_size = axes[name]
        weight = QuantizedTensor(codes, scale, zero_point, axis, bits, tensors.get(f"codebook:{name}"), group_size)
    else:
        weight = tensors[f"weight:{name}"]
    return CompressedLayer(weight, tensors.get(f"bias:{name}"), tensors.get(f"mask:{name}"))
