"""Runs the FP32 file and the module on calibration data, and keeps ranges, input moments and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.components import Components, Observer
from autocompress.errors import PluginError
from autocompress.guarding.plugin_call import calling, described, read_only
from autocompress.network.graph import EMBEDDING, BaseGraph, Layer
from autocompress.network.placement import quantizable
from autocompress.task import Task
from autocompress.tensors.activations import activations
from autocompress.tensors.gradients import gradient_examples, sampled_gradients
from autocompress.tensors.moments import Moments
from autocompress.tensors.patches import sample_patches
from autocompress.tensors.ranges import ACTIVATION_BITS, Range
from autocompress.tensors.stats import LayerStats

SHARES = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})
"""Operators that give nothing below 0 or above 1, whatever range an observer joins their outputs to."""


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without what no grid has: attention is masked with minus infinity, which its softmax reads as any low number."""
    kept = np.isfinite(values)
    return values if kept.all() else values[kept]


class Calibration:
    """Statistics of one task on one base graph; implements `StatsSource`."""

    def __init__(self, task: Task, graph: BaseGraph, components: Components, folder: Path, seed: int = 0) -> None:
        self._task, self._graph, self._components = task, graph, components
        self._folder, self._seed = folder, seed
        self._grids: dict[tuple[int, str], Mapping[str, Range]] = {}

    def stats(self, layer: Layer) -> LayerStats:
        """The statistics of a layer."""
        return LayerStats(layer, torch.from_numpy(self._graph.initializers[layer.weight].copy()), self)

    def observe(self) -> None:
        """Run the calibration data through the FP32 file now, rather than when a statistic is first asked for.

        Raises:
            PluginError: the configured observer fails, without which no trial could work.
        """
        _ = self.ranges

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Grid of 8 bits of each tensor that some policy may quantize, by the configured observer."""
        return self.grids(ACTIVATION_BITS)

    def grids(self, bits: int, observer: str | None = None) -> Mapping[str, Range]:
        """Grid of 8 or 16 bits of each tensor that some policy may quantize.

        Args:
            observer: one of `Components.observers`; None: the configured one.
        """
        key = bits, observer or self._components.observer.name
        if key not in self._grids:
            self._grids[key] = self._found_grids(*key)
        return self._grids[key]

    def _found_grids(self, bits: int, observer: str) -> dict[str, Range]:
        configured = self._components.observers[observer]
        with calling(configured, "range"):
            found = {name: watching.range(bits) for name, watching in self._observed[0][observer].items()}
            joined = {name: (float(low), float(high)) for name, (low, high) in configured.joined(found).items()}
        _check_ranges(configured, found, joined)
        shares = {op.output for op in self._graph.ops if op.op_type in SHARES}
        joined |= {name: (0.0, min(joined[name][1], 1.0)) for name in shares & joined.keys()}
        return {name: Range.of(*ends, bits) for name, ends in joined.items()}

    def input_mean(self, layer: Layer) -> Tensor:
        """Mean input patch: (groups, d); zeros for an embedding."""
        if layer.kind == EMBEDDING:
            return torch.zeros(1, layer.shape[1])
        return self._observed[1][layer.name].mean

    def input_second_moment(self, layer: Layer) -> Tensor:
        """Mean of x x^T over input patches: (groups, d, d); the identity for an embedding."""
        if layer.kind == EMBEDDING:
            return torch.eye(layer.shape[1])[None]
        return self._observed[1][layer.name].second_moment

    def input_shrinkage(self, layer: Layer) -> Tensor:
        """How far the input covariance must move towards a multiple of the identity: (groups,); 0 for an embedding."""
        return torch.zeros(1) if layer.kind == EMBEDDING else self._observed[1][layer.name].shrinkage

    def gradient_samples(self, layer: Layer) -> Tensor:
        """Gradients with respect to the folded weight: (R, *layer.shape)."""
        return self._gradients[layer.name].clone()

    def gradient_examples(self) -> int:
        """Examples that each gradient sample is the mean over."""
        return gradient_examples(self._task)

    @cached_property
    def _observed(self) -> tuple[dict[str, dict[str, Observer]], dict[str, Moments]]:
        """Observers by name and tensor, and moments by layer, from one pass over the data."""
        names = quantizable(self._graph, self._components.target.capabilities())
        configured = self._components.observers
        observers = {
            which: {name: dataclasses.replace(one) for name in names}  # type: ignore[type-var]
            for which, one in configured.items()
        }
        moments: dict[str, Moments] = {}
        target = self._components.target
        for batch, values in enumerate(activations(self._graph, self._task, target, names, self._folder)):
            seen = {name: read_only(_finite(values[name])) for name in names}
            for which, watching in observers.items():
                with calling(configured[which], "update"):
                    for name, observer in watching.items():
                        observer.update(seen[name])
            for layer in self._graph.layers.values():
                if layer.kind != EMBEDDING:
                    self._add_moments(moments, layer, values[layer.input], batch)
        return observers, moments

    def _add_moments(self, moments: dict[str, Moments], layer: Layer, values: NDArray[np.float32], batch: int) -> None:
        patches = sample_patches(torch.from_numpy(values), layer, self._seed + batch)
        if layer.name not in moments:
            moments[layer.name] = Moments(len(patches), patches.shape[2])
        moments[layer.name].add(patches, len(values))

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        return sampled_gradients(self._task, self._graph, self._seed)


def _check_ranges(observer: Observer, found: Mapping[str, object], joined: Mapping[str, tuple[float, float]]) -> None:
    """One range for each tensor, each two finite numbers in their order."""
    if found.keys() != joined.keys():
        raise PluginError(
            f"{described(observer)}: joined gives ranges of {len(joined)} tensors; expected the same {len(found)}"
        )
    for name, (low, high) in joined.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise PluginError(f"{described(observer)}: tensor {name}: range ({low}, {high}); expected finite low <= high")
