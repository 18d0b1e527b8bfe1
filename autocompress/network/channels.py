"""Channels that must be removed together, found once and verified: the same table slices the file and the module.

Found with torch-pruning (DepGraph, Fang et al. 2023). Its tracing misses some architectures, so every group is tried: sliced
file and sliced module must compute what the model computes when nothing reads the channels. A group that fails is left out,
with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.network.graph import BaseGraph, Layer
from autocompress.policy import ChannelPolicy


@dataclass(frozen=True)
class Entry:
    """Where one module's parameters hold the group's channels.

    Attributes:
        module: name of the module, which is also the layer's name.
        outputs: whether the channels are the module's outputs, else its inputs.
        indices: int64, shape (size, k): channel i of the group is the k indices `indices[i]` along that axis.
    """

    module: str
    outputs: bool
    indices: Tensor

    def kept(self, channels: Tensor) -> Tensor:
        """Indices along the axis, ascending, of the given channels of the group."""
        return self.indices[channels].flatten().sort().values


@dataclass(frozen=True)
class ChannelGroup:
    """Channels tied together across layers; `name` is the first layer that gives them.

    Attributes:
        size: number of channels.
        entries: the layers that are cut.
        norms: the batch norms that are cut in the module; in the file they are part of a layer.
        multiple: the number that stays is rounded to a multiple of this.
    """

    name: str
    size: int
    entries: tuple[Entry, ...]
    norms: tuple[Entry, ...] = ()
    multiple: int = 8

    def kept_count(self, sparsity: float) -> int:
        """Channels that stay when the share `sparsity` is removed: a multiple of `multiple`, at least one multiple."""
        unit = min(self.multiple, self.size)
        return min(self.size, max(unit, unit * round(self.size * (1 - sparsity) / unit)))


@dataclass(frozen=True)
class ChannelGroups:
    """The groups of a model that can be cut, and why the others cannot."""

    groups: Mapping[str, ChannelGroup] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def file_axis(entry: Entry, layer: Layer) -> int:
    """Axis of the entry's channels in the file's weight."""
    return layer.channel_axis if entry.outputs else 1 - layer.channel_axis


def keep_indices(group: ChannelGroup, score: Tensor, decision: ChannelPolicy) -> Tensor:
    """Indices of the channels that stay, ascending: those with the highest score, shape (size,)."""
    share = decision.sparsity if decision.threshold is None else share_below(score, decision.threshold)
    return score.argsort(descending=True, stable=True)[: group.kept_count(share)].sort().values


def share_below(score: Tensor, threshold: float) -> float:
    """Share of the entries that are not above a threshold."""
    return float((score <= threshold).double().mean())


def channel_scores(group: ChannelGroup, layers: Mapping[str, Layer], score: Callable[[str, int], Tensor]) -> Tensor:
    """Mean score of each channel over all tied layers: float32, shape (size,).

    Args:
        score: scores of the slices of a layer's weight along an axis, of that axis's length. Each layer's are scaled to mean 1
            first, so that a layer with large weights does not outvote the others. So is what a threshold is compared with.
    """
    total = torch.zeros(group.size)
    for entry in group.entries:
        along = score(entry.module, file_axis(entry, layers[entry.module])).float()
        total += along[entry.indices].mean(1) / along.mean().clamp_min(1e-30)
    return total / len(group.entries)


def find_groups(graph: BaseGraph, model: nn.Module, example: Tensor, multiple: int) -> ChannelGroups:
    """Find the dependency groups whose channels are hidden inside the model (never those of its input or output)."""
    try:
        traced = _trace(model, example)
    except Exception as error:
        return ChannelGroups(refused={"model": f"torch-pruning cannot trace it: {type(error).__name__}: {error}"})
    groups, refused = {}, {}
    for name, size, members in traced:
        try:
            groups[name] = _group(name, size, members, graph, multiple)
        except _RefusedError as error:
            refused[name] = str(error)
    return ChannelGroups(groups, refused)


class _RefusedError(Exception):
    """Why a group cannot be cut."""


@dataclass(frozen=True)
class _Member:
    """One module of a traced group: position i along its axis belongs to the group's channel `roots[i]`."""

    module: nn.Module
    entry_name: str
    outputs: bool
    roots: Sequence[int]
    indices: Sequence[int]


def _trace(model: nn.Module, example: Tensor) -> list[tuple[str, int, list[_Member]]]:
    """Each dependency group as (name of its root, channels of the root, members with parameters)."""
    import torch_pruning

    traced = copy.deepcopy(model).eval().requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dependencies = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=example[:1])
        found = list(dependencies.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    names = {module: name for name, module in traced.named_modules()}
    groups = [
        [_member(item, names, dependencies) for item in group.items if item.dep.target.module in names] for group in found
    ]
    return [(members[0].entry_name, len(members[0].indices), [m for m in members if _has_parameters(m)]) for members in groups]


def _has_parameters(member: _Member) -> bool:
    return next(member.module.parameters(recurse=False), None) is not None


def _member(item: Any, names: Mapping[nn.Module, str], dependencies: Any) -> _Member:
    module = item.dep.target.module
    outputs = dependencies.is_out_channel_pruning_fn(item.dep.handler)
    return _Member(module, names[module], outputs, list(item.root_idxs), [int(index) for index in item.idxs])


def _group(name: str, size: int, members: Iterable[_Member], graph: BaseGraph, multiple: int) -> ChannelGroup:
    entries, norms = [], []
    for member in members:
        if isinstance(member.module, nn.modules.batchnorm._BatchNorm):
            norms.append(_entry(member, size, member.module.num_features))
        elif member.entry_name in graph.layers:
            layer = graph.layers[member.entry_name]
            _check_layer(layer, member)
            axis = layer.channel_axis if member.outputs else 1 - layer.channel_axis
            entries.append(_entry(member, size, layer.shape[axis]))
        else:
            raise _RefusedError(
                f"it changes {member.entry_name} ({type(member.module).__name__}), which is not a layer of the file"
            )
    if not any(not entry.outputs for entry in entries):
        raise _RefusedError("its channels are an output of the model")
    return ChannelGroup(name, size, tuple(entries), tuple(norms), multiple)


def _check_layer(layer: Layer, member: _Member) -> None:
    if layer.groups > 1 and layer.kind != "depthwise":
        raise _RefusedError(f"{layer.name} is a grouped convolution")
    if layer.output == "output" and member.outputs:
        raise _RefusedError("its channels are an output of the model")


def _entry(member: _Member, size: int, length: int) -> Entry:
    """The index map, when each channel of the group has equally many indices and together they are the whole axis."""
    by_channel: dict[int, list[int]] = {channel: [] for channel in range(size)}
    for channel, index in zip(member.roots, member.indices, strict=True):
        by_channel.setdefault(channel, []).append(index)
    lengths = {len(found) for found in by_channel.values()}
    if sorted(member.indices) != list(range(length)) or len(lengths) != 1:
        raise _RefusedError(f"it covers {len(set(member.indices))} of the {length} channels of {member.entry_name}")
    return Entry(member.entry_name, member.outputs, torch.tensor([by_channel[channel] for channel in range(size)]))


def cut_module(model: nn.Module, groups: Mapping[str, ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module from which the channels that are not kept are removed."""
    cut = copy.deepcopy(model).eval()
    for name, channels in kept.items():
        for entry in (*groups[name].entries, *groups[name].norms):
            _cut_submodule(cut.get_submodule(entry.module), entry, entry.kept(channels))
    return cut


def silenced_module(model: nn.Module, groups: Mapping[str, ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """A whole copy of the module in which no layer reads the channels that are not kept: what a cut must compute."""
    silenced = copy.deepcopy(model).eval()
    for name, channels in kept.items():
        for entry in (entry for entry in groups[name].entries if not entry.outputs):
            weight = silenced.get_submodule(entry.module).get_parameter("weight").detach()  # shape (outputs, inputs, ...)
            unread = torch.ones(weight.shape[1], dtype=torch.bool).index_fill(0, entry.kept(channels), False)
            weight[:, unread] = 0.0
    return silenced


def _cut_submodule(module: nn.Module, entry: Entry, kept: Tensor) -> None:
    for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        axis = 0 if entry.outputs else 1
        if tensor.dim() <= axis or (not entry.outputs and key != "weight"):
            continue
        sliced = tensor.detach().index_select(axis, kept)
        setattr(module, key, nn.Parameter(sliced) if isinstance(tensor, nn.Parameter) else sliced)
    _update_sizes(module, entry.outputs, len(kept))


def _update_sizes(module: nn.Module, outputs: bool, size: int) -> None:
    """Attributes that describe the shape; a depthwise convolution has as many groups as channels."""
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        module.groups = module.in_channels = module.out_channels = size
        return
    conv = isinstance(module, nn.modules.conv._ConvNd)
    name = {True: ("in_channels", "out_channels"), False: ("in_features", "out_features")}[conv][outputs]
    if hasattr(module, name):
        setattr(module, name, size)
    if hasattr(module, "num_features"):
        setattr(module, "num_features", size)  # noqa: B010  (mypy takes any attribute of a module for a tensor)
