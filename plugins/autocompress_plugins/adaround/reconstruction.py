"""Runs the calibration inputs through a candidate once; each block learns its rounding when they reach it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress import CompressedLayer, CompressedModel, QuantizedTensor
from autocompress_plugins.adaround.block import Block, Call, Recipe
from autocompress_plugins.adaround.units import find_units

if TYPE_CHECKING:
    from autocompress import Recoverable

    Outputs = Mapping[str, np.memmap[Any, Any]]

LEARNED_BITS = 4
"""The steps of wider codes are so small that it does not matter where a weight goes."""

CHUNK = 8
"""Examples that pass through a block at a time where nothing is learned."""


def reconstruct(candidate: Recoverable, recipe: Recipe) -> CompressedModel:
    """The candidate's tensors with learned codes and biases, or as they were where the outputs did not come nearer to FP32."""
    inputs = _inputs(candidate, recipe.images)
    learned = [name for name in candidate.graph.layers if _is_learned(candidate, name)]
    if not learned or candidate.graph.batch == 1 or len(inputs) < 2:
        candidate.progress.note("adaround: nothing to learn; expected weights of at most 4 bits, and examples in batches")
        return candidate.compressed
    student, teacher = (part.to(memory_format=torch.channels_last) for part in (candidate.folded(), candidate.original()))
    before = _distance(student, teacher, inputs)
    units = find_units(teacher, learned, recipe.block_layers, inputs[:2])
    session = _Session(candidate, recipe, units, learned, _record(teacher, units, inputs, candidate.folder / "blocks"))
    rounded = session.run(student, inputs)
    after = _distance(student, teacher, inputs)
    candidate.progress.note(f"adaround: error of the outputs {before:.4f} -> {after:.4f} of their variance")
    if after >= before:
        return candidate.compressed
    return replace(candidate.compressed, layers={**candidate.compressed.layers, **rounded})


def _inputs(candidate: Recoverable, images: int) -> Tensor:
    inputs = torch.from_numpy(candidate.task.sets["calibration"].inputs[:images])
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _is_learned(candidate: Recoverable, name: str) -> bool:
    stored = candidate.compressed.layers.get(name)
    weight = stored.weight if stored is not None else None
    if not isinstance(weight, QuantizedTensor) or candidate.graph.layers[name].kind == "embedding":
        return False
    return weight.bits <= LEARNED_BITS and weight.codebook is None


def _record(teacher: nn.Module, units: list[str], inputs: Tensor, folder: Path) -> Outputs:
    """Outputs of each unit for all inputs, on disk: those of a large model do not fit into memory together."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, np.memmap[Any, Any]] = {}
    start = 0

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if name not in found:
                shape = (len(inputs), *output.shape[1:])
                found[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
            found[name][start : start + len(output)] = output.numpy()

        return hook

    hooks = [teacher.get_submodule(name).register_forward_hook(keep(name)) for name in units]
    with torch.no_grad():
        for batch in torch.split(inputs, CHUNK):
            teacher(batch)
            start += len(batch)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def _distance(student: nn.Module, teacher: nn.Module, inputs: Tensor) -> float:
    """Mean squared difference of the outputs, as a share of the teacher's variance."""
    found, taught = (torch.cat([module(batch) for batch in torch.split(inputs, CHUNK)]) for module in (student, teacher))
    return float((found - taught).square().mean() / taught.var().clamp_min(1e-12))


class _Session:
    """One pass over the units of a student."""

    def __init__(self, candidate: Recoverable, recipe: Recipe, units: list[str], learned: list[str], targets: Outputs) -> None:
        self._candidate, self._recipe, self._units, self._learned = candidate, recipe, units, learned
        self._targets, self._weights = targets, candidate.unquantized()
        self._random = torch.Generator().manual_seed(candidate.seed)
        self._end = time.monotonic() + recipe.seconds
        self._rounded: dict[str, CompressedLayer] = {}

    def run(self, student: nn.Module, inputs: Tensor) -> dict[str, CompressedLayer]:
        """Round the units in place, each as soon as the inputs have come through those before it; the learned layers."""
        parts = [student.get_submodule(name) for name in self._units]
        for index, part in enumerate(parts):
            part.forward = self._learning(index, student, part.forward)
        with torch.no_grad():
            student(inputs)
        for part in parts:
            del part.forward  # the class has its own
        return self._rounded

    def _learning(self, index: int, student: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A `forward` that learns from its inputs before it computes."""

        def learn(*args: Any, **kwargs: Any) -> Tensor:
            call = Call(forward, args, kwargs, len(args[0]))
            with torch.enable_grad():
                self._learn(index, student, call)
            return torch.cat([call.part(rows) for rows in torch.split(torch.arange(call.size), CHUNK)])

        return learn

    def _learn(self, index: int, student: nn.Module, call: Call) -> None:
        unit = self._units[index]
        block = Block(self._candidate, student, [name for name in self._learned if _is_in(name, unit)], self._weights)
        seconds = (self._end - time.monotonic()) / (len(self._units) - index)
        target = torch.from_numpy(self._targets[unit])
        error = block.learn(call, target, self._recipe, seconds, self._random)
        self._rounded |= block.detach()
        self._candidate.progress.note(f"adaround [{index + 1}/{len(self._units)}] {unit}: error {error:.4f} of the variance")


def _is_in(layer: str, unit: str) -> bool:
    return f"{layer}.".startswith(f"{unit}.")
