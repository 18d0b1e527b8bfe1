"""Gradients of the loss with respect to the weights of the file, which the module has before batch norms were folded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from autocompress.network.graph import BaseGraph
from autocompress.task import Task
from autocompress.tensors.module_weights import fold_factor, module_of, oriented

GRADIENT_SAMPLES = 8
GRADIENT_BATCH = 32


def gradient_examples(task: Task) -> int:
    """Examples that each sample is the mean over."""
    return min(GRADIENT_BATCH, len(task.sets["calibration"]))


def sampled_gradients(task: Task, graph: BaseGraph, seed: int) -> dict[str, Tensor]:
    """Layer to gradients on bootstrap batches of the calibration set: (GRADIENT_SAMPLES, *layer.shape).

    Raises:
        ModelError: a weight of the file is none of the module's.
    """
    modules = {name: module_of(task.model, name) for name in graph.layers}
    samples: dict[str, list[Tensor]] = {name: [] for name in modules}
    with _all_trainable(task.model) as model:
        for inputs, targets in _resamples(task, seed):
            model.zero_grad(set_to_none=True)
            task.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            for name, module in modules.items():
                samples[name].append(oriented(_gradient(module), graph.layers[name], module))
    return {name: _unfolded(torch.stack(found), _fold(graph, name, modules[name])) for name, found in samples.items()}


def _resamples(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    examples, random = task.sets["calibration"], np.random.default_rng(seed)
    for _ in range(GRADIENT_SAMPLES):
        chosen = random.integers(len(examples), size=gradient_examples(task))
        yield torch.from_numpy(examples.inputs[chosen]), torch.from_numpy(examples.targets[chosen])


def _fold(graph: BaseGraph, name: str, module: torch.nn.Module) -> Tensor:
    """What batch norm multiplied each channel by when it was folded, shaped to divide a gradient of the weight."""
    layer = graph.layers[name]
    factor = fold_factor(layer, torch.from_numpy(graph.initializers[layer.weight].copy()), module)
    return factor.reshape([-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.shape))])


@contextmanager
def _all_trainable(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model with gradients for every parameter: a frozen layer is compressed like any other."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.requires_grad_(True)
    try:
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)


def _unfolded(gradients: Tensor, factor: Tensor) -> Tensor:
    """Gradients of the folded weight; a channel that batch norm switched off has none."""
    return torch.where(factor == 0, 0.0, gradients / factor)


def _gradient(module: torch.nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.grad.detach().clone() if weight.grad is not None else torch.zeros_like(weight)
