"""The module that computes what a candidate file computes: checks the file from outside, and verifies channel groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.accuracy.evaluation import snr_db
from autocompress.artifact import Artifact
from autocompress.building.bias import rounded_bias
from autocompress.building.candidate import build
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor, Target
from autocompress.measuring.runner import load_session
from autocompress.network.channels import ChannelGroup, ChannelGroups, cut_module, silenced_module
from autocompress.network.graph import EMBEDDING, BaseGraph, Layer
from autocompress.network.placement import place
from autocompress.policy import Policy
from autocompress.tensors.compress import CompressedModel, file_cuts
from autocompress.tensors.module_weights import fold_factor, module_of, oriented
from autocompress.tensors.ranges import Range
from autocompress.tensors.stats import slice_axes

EQUAL_DB = 60.0
"""Two float computations of the same function agree far better than this; a wrong channel does not come near it."""


def module_twin(
    graph: BaseGraph,
    model: nn.Module,
    groups: Mapping[str, ChannelGroup],
    policy: Policy,
    compressed: CompressedModel,
    capabilities: Capabilities,
) -> nn.Module:
    """A copy of the module with the candidate's weights, biases, channels and quantized activations.

    Batch norm stays in place: a hook on each layer gives the input that makes batch norm return what the file's layer returns.
    """
    twin = cut_module(model, groups, compressed.kept)
    placement = place(graph, policy, capabilities)
    cuts = file_cuts(graph, groups, compressed.kept)
    for name, layer in graph.layers.items():
        module = module_of(twin, name)
        unfold = _unfolding(graph, layer, module_of(model, name), cuts.get(name, {}))
        grid = compressed.ranges.get(placement.quantized.get(layer.input, ""))
        if name in compressed.layers:
            computed = _as_computed(compressed.layers[name], grid if placement.modes.get(name) == "static" else None)
            _set_weight(module, layer, computed, unfold)
        if grid is not None:
            module.register_forward_pre_hook(_fake_quantize(grid))
        if placement.modes.get(name) == "dynamic":
            module.register_forward_pre_hook(fake_quantize_dynamically)
    return twin


def _unfolding(
    graph: BaseGraph, layer: Layer, module: nn.Module, cuts: Mapping[int, Tensor]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Maps a file's (weight rows, bias) to the module's: undoes the batch norm that the exporter folded in."""
    factor = fold_factor(layer, torch.from_numpy(graph.initializers[layer.weight].copy()), module)
    own = getattr(module, "bias", None)
    own_bias = own.detach() if isinstance(own, Tensor) else torch.zeros(layer.channels)
    file_bias = torch.from_numpy(graph.initializers[layer.bias].copy()) if layer.bias else torch.zeros(layer.channels)
    offset = file_bias - factor * own_bias
    kept = cuts.get(layer.channel_axis, torch.arange(layer.channels))
    factor, offset = factor[kept], offset[kept]
    factor = factor.where(factor != 0, 1.0)  # batch norm switched the channel off: any finite weight does

    def unfold(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        shape = [-1 if axis == layer.channel_axis else 1 for axis in range(weight.dim())]
        return weight / factor.reshape(shape), (bias - offset) / factor

    return unfold


def _as_computed(layer: CompressedLayer, grid: Range | None) -> CompressedLayer:
    """The layer with its bias as the file has it: every rounding counts, because later layers round its result again."""
    if grid is None or layer.bias is None or not isinstance(layer.weight, QuantizedTensor):
        return layer
    return replace(layer, bias=rounded_bias(layer.bias, layer.weight, grid))


def _set_weight(
    module: nn.Module, layer: Layer, compressed: CompressedLayer, unfold: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    dense = compressed.dense()
    bias = compressed.bias if compressed.bias is not None else torch.zeros(dense.shape[layer.channel_axis])
    weight, shift = unfold(dense, bias)
    module.weight = nn.Parameter(oriented(weight, layer, module))
    if layer.kind != EMBEDDING:
        module.register_parameter("bias", nn.Parameter(shift))


def _fake_quantize(grid: Range) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.fake_quantize_per_tensor_affine(inputs[0], grid.scale, grid.zero_point, 0, grid.most), *inputs[1:])

    return hook


def fake_quantize_dynamically(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook that rounds each example of a layer's input to the 8-bit grid that covers it (ONNX, DynamicQuantizeLinear)."""
    rows = inputs[0].flatten(1)
    low, high = rows.amin(1).clamp(max=0.0), rows.amax(1).clamp(min=0.0)
    scale = (high - low) / 255
    scale = scale.where(scale > 0, 1.0)
    zero_point = (-low / scale).round().clamp(0, 255).int()
    return (torch.fake_quantize_per_channel_affine(inputs[0], scale, zero_point, 0, 0, 255), *inputs[1:])


def twin_outputs(twin: nn.Module, inputs: NDArray[Any]) -> NDArray[Any]:
    """Outputs of a module for an array of examples."""
    with torch.no_grad():
        outputs: NDArray[Any] = twin(torch.from_numpy(inputs)).numpy()
    return outputs


def verify_groups(
    graph: BaseGraph, model: nn.Module, found: ChannelGroups, example: Tensor, target: Target, folder: Path
) -> ChannelGroups:
    """Keep the groups that can be cut: file and module then compute what the model does when nothing reads the channels."""

    def verified(names: list[str]) -> bool:
        return _agrees(graph, model, {name: found.groups[name] for name in names}, example, target, folder)

    if not found.groups or verified(list(found.groups)):
        return found
    good = [name for name in found.groups if verified([name])]
    reason = "its channels cannot be removed from file and module without changing what the others compute"
    refused = {name: reason for name in found.groups if name not in good}
    return replace(found, groups={name: found.groups[name] for name in good}, refused={**found.refused, **refused})


def _agrees(
    graph: BaseGraph, model: nn.Module, groups: Mapping[str, ChannelGroup], example: Tensor, target: Target, folder: Path
) -> bool:
    """Cut half of the channels, in the file and in the module, and compare."""
    kept = {name: _half(group.size) for name, group in groups.items()}
    try:
        expected = twin_outputs(silenced_module(model, groups, kept), example.numpy())
        module = twin_outputs(cut_module(model, groups, kept), example.numpy())
        file = _cut_file(graph, groups, kept, target, folder / "groups.onnx")
        outputs = load_session(target, file.path, torch.get_num_threads())([example.numpy()])[0]
    except Exception:  # any way of failing means that these channels cannot be cut
        return False
    return all(cut.shape == expected.shape and snr_db(expected, cut) > EQUAL_DB for cut in (module, outputs))


def _half(size: int) -> Tensor:
    """A random half of the channels: a regular choice would not notice every shift."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))[: (size + 1) // 2].sort().values


def _cut_file(
    graph: BaseGraph, groups: Mapping[str, ChannelGroup], kept: Mapping[str, Tensor], target: Target, path: Path
) -> Artifact:
    cuts = file_cuts(graph, groups, kept)
    layers = {name: _cut_layer(graph, graph.layers[name], cut) for name, cut in cuts.items()}
    return build(graph, Policy(), CompressedModel(layers, {}, kept), target.capabilities(), path).artifact


def _cut_layer(graph: BaseGraph, layer: Layer, cuts: Mapping[int, Tensor]) -> CompressedLayer:
    weight = slice_axes(torch.from_numpy(graph.initializers[layer.weight].copy()), cuts)
    bias = torch.from_numpy(graph.initializers[layer.bias].copy()) if layer.bias else None
    kept = cuts.get(layer.channel_axis)
    return CompressedLayer(weight, bias if bias is None or kept is None else bias[kept])
