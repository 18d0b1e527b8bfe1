"""The module's weight beside the file's, which the exporter may have transposed and multiplied by a batch norm's factors."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.errors import ModelError
from autocompress.network.graph import Layer


def module_of(model: torch.nn.Module, layer: str) -> torch.nn.Module:
    """The submodule that a layer of the file came from.

    Raises:
        ModelError: there is none: the weight is a bare parameter or was made by the exporter.
    """
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise ModelError(f"layer {layer}: no submodule of this name holds its weight; gradients cannot be matched") from error


def fold_factor(layer: Layer, folded: Tensor, module: torch.nn.Module) -> Tensor:
    """Factor of each output channel between the module's weight and the file's, shape (channels,).

    Raises:
        ModelError: the module's weight is not the file's weight up to such a factor.
    """
    weight = getattr(module, "weight", None)
    weight = oriented(weight, layer, module) if isinstance(weight, Tensor) else None
    if weight is None or weight.shape != folded.shape:
        raise ModelError(f"layer {layer.name}: module and exported weight differ in shape; gradients cannot be matched")
    ours, theirs = (part.detach().movedim(layer.channel_axis, 0).flatten(1) for part in (folded, weight))
    norm = theirs.square().sum(1)
    return torch.where(norm > 0, (ours * theirs).sum(1) / norm.clamp_min(1e-30), torch.ones_like(norm))


def oriented(tensor: Tensor, layer: Layer, module: torch.nn.Module) -> Tensor:
    """A tensor of the shape of the module's weight in the file's shape, and back: some linear weights are transposed."""
    return tensor.T if isinstance(module, torch.nn.Linear) and layer.channel_axis == 1 else tensor
