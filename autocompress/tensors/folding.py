"""A module whose layers hold the file's own weights and biases: the batch norm that the exporter folded into them is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from autocompress.components import CompressedLayer
from autocompress.errors import ModelError
from autocompress.network.graph import BaseGraph
from autocompress.tensors.module_weights import module_of, oriented

TOLERANCE = 0.05
"""Most that folding may change an output, relative to the largest: float32 computed in another order moves a few activations to
the next step of their grid; a norm that is missing changes everything."""


def folded_norms(module: nn.Module, layers: Collection[str], example: Tensor) -> dict[str, str]:
    """Batch norms that read a layer's output directly, each with its layer: the exporter folds these.

    Args:
        example: one input batch.
    """
    given: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, or another could take over an address
    found: dict[str, str] = {}

    def remember(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: given.update({id(output): (name, output)})

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in given:
                found[name] = given[id(inputs[0])][0]

        return hook

    hooks = [module_of(module, name).register_forward_hook(remember(name)) for name in layers]
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    hooks += [part.register_forward_pre_hook(look(name)) for name, part in norms.items()]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return found


def folded(graph: BaseGraph, module: nn.Module, layers: Mapping[str, CompressedLayer], example: Tensor) -> nn.Module:
    """A copy of a module with the tensors of `layers` in place of its own and without the norms that they contain.

    Args:
        module: computes what a file with these tensors computes; in eval mode.
        layers: every layer of the graph.
        example: one input batch.

    Raises:
        ModelError: the copy computes something else, because the exporter treated a norm in another way.
    """
    changed = copy.deepcopy(module)
    for norm in folded_norms(module, graph.layers, example):
        parent, _, child = norm.rpartition(".")
        setattr(changed.get_submodule(parent), child, nn.Identity())
    for name, layer in graph.layers.items():
        part, stored = module_of(changed, name), layers[name]
        part.weight = nn.Parameter(oriented(stored.dense(), layer, part), requires_grad=False)
        if stored.bias is not None:  # a module's own bias may be an operator of its own in the file
            part.register_parameter("bias", nn.Parameter(stored.bias.clone(), requires_grad=False))
    _check_equal(module, changed, example)
    return changed


def _check_equal(module: nn.Module, changed: nn.Module, example: Tensor) -> None:
    with torch.no_grad():
        before, after = module(example), changed(example)
    difference = float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
    if difference > TOLERANCE:
        raise ModelError(
            f"model {type(module).__name__}: without its batch norm, outputs differ by {difference:.1e} of the largest; "
            f"expected at most {TOLERANCE}: a norm is not part of the layer before it"
        )
