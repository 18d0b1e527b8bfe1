"""Latency of a policy, predicted from what its operators are: learned from measured files, with how sure it is.

The time of a file is modelled as the sum over its operators of a cost for what they are (type, shape, integer or float, in
proportion to the channels left) and over the tensors where precision changes of a cost for the change; as in nn-Meter (Zhang et
al. 2021) and HAWQ-V3 (Yao et al. 2021), but learned from whole files, where the costs already include what the runtime fuses.
All in shares of the FP32 file's time. Equal operators share one cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.budget import Latency
from autocompress.components import Capabilities
from autocompress.network.channels import ChannelGroup
from autocompress.network.graph import BaseGraph, Layer, Op
from autocompress.network.placement import Placement, place
from autocompress.network.tensor_sizes import tensor_sizes
from autocompress.policy import Policy
from autocompress.prediction.linear_model import LinearModel

Array = NDArray[np.float64]

DIRECTIONS = ("quantize", "dequantize")

OVERHEAD = 0.05
"""Prior mean of the share of the FP32 time that belongs to no operator."""

MACS_SHARE = 0.6
"""Prior: an operator's part of the time is this share by multiply-accumulates, the rest by the values that it writes."""

PRECISIONS = {"float": 1.0, "integer": 0.45, "dynamic": 0.6, "stored": 1.0}
"""Prior: cost of an operator that computes so against the same in float."""

CHANGE_COST = 0.3
"""Prior: cost of changing the precision of a tensor against an operator that only writes it."""

DOUBT = 0.6
"""Prior standard deviation of a cost, as a share of its mean."""

LEAST_SPREAD = 1e-4
"""Least prior standard deviation of a cost: an operator that the prior takes for free may still cost something."""

MISFIT = 0.01
"""Standard deviation of what the model cannot express, as a share of the ratio."""

NOISE = 0.003
"""Least standard deviation of a measured ratio."""


@dataclass(frozen=True)
class Observation:
    """A measured file: its policy, the ratio to FP32, and the standard deviation of that."""

    policy: Policy
    ratio: float
    spread: float

    @classmethod
    def of(cls, policy: Policy, latency: Latency) -> Observation:
        """The interval of a measured ratio covers 95 %."""
        return cls(policy, latency.ratio, (latency.ratio_high - latency.ratio_low) / 3.92)


class LatencyFeatures:
    """What a policy's file consists of, as numbers that a linear model takes: how it differs from the FP32 file.

    One number for each kind of equal operators and each precision, then one for each size of tensor and direction of change.
    """

    def __init__(self, graph: BaseGraph, groups: Mapping[str, ChannelGroup], capabilities: Capabilities) -> None:
        self._graph, self._groups, self._capabilities = graph, groups, capabilities
        self._sizes = tensor_sizes(graph)
        self._nodes: dict[str, Layer | Op] = {layer.node: layer for layer in graph.layers.values()}
        self._nodes |= {op.name: op for op in graph.ops}
        self._producers = {node.output: name for name, node in self._nodes.items()}
        self._readers: dict[str, list[str]] = defaultdict(list)
        for name, node in self._nodes.items():
            for tensor in _read(node):
                self._readers[tensor].append(name)
        self.kinds = {name: self._kind(node) for name, node in self._nodes.items()}
        operators = [(kind, precision) for kind in dict.fromkeys(self.kinds.values()) for precision in PRECISIONS]
        changes = [(size, direction) for size in dict.fromkeys(self._sizes.values()) for direction in DIRECTIONS]
        self._operators = {key: index for index, key in enumerate(operators)}
        self._changed = {key: len(operators) + index for index, key in enumerate(changes)}
        self._known: dict[object, Array] = {}

    def of(self, policy: Policy) -> Array:
        """Features of a policy's file, shape (features,); all 0 for FP32."""
        modes = tuple((name, layer.activation) for name, layer in policy.layers.items() if layer.quantizer is not None)
        key = (modes, tuple(policy.channels.items()), tuple(policy.ops.items()), tuple(policy.tensors.items()))
        if key not in self._known:
            self._known[key] = self._counted(policy)
        return self._known[key]

    def _counted(self, policy: Policy) -> Array:
        placement = place(self._graph, policy, self._capabilities)
        found = np.zeros(len(self._operators) + len(self._changed))
        left = self._left(policy)
        for name, node in self._nodes.items():
            found[self._operators[self.kinds[name], _precision(name, node, placement)]] += left.get(name, 1.0)
            found[self._operators[self.kinds[name], "float"]] -= 1.0
        for tensor, direction in self._changes(placement):
            found[self._changed[self._sizes[tensor], direction]] += 1
        return found

    def _kind(self, node: Layer | Op) -> tuple[object, ...]:
        """Operators of the same kind cost the same."""
        size = self._sizes.get(node.output, 0)
        return (node.kind, node.shape, node.strides, size) if isinstance(node, Layer) else (node.op_type, size)

    def _left(self, policy: Policy) -> dict[str, float]:
        """Node to the share of its work that is left when channels are removed."""
        left: dict[str, float] = {}
        for name, decision in policy.channels.items():
            group = self._groups[name]
            share = group.kept_count(decision.sparsity) / group.size
            for entry in group.entries:
                layer = self._graph.layers[entry.module]
                if entry.outputs or layer.kind != "depthwise":
                    left[layer.node] = left.get(layer.node, 1.0) * share
        return left

    def _changes(self, placement: Placement) -> Iterator[tuple[str, str]]:
        """Tensors that are quantized or dequantized by an operator of its own."""
        for tensor, source in placement.quantized.items():
            readers = self._readers.get(tensor, ())
            if tensor == source and self._producers.get(tensor) not in placement.integer:
                yield tensor, "quantize"
            if tensor in self._graph.outputs or any(reader not in placement.integer for reader in readers):
                yield tensor, "dequantize"

    @cached_property
    def prior(self) -> Array:
        """Prior mean of each feature's cost, shape (features,)."""
        macs = sum(node.macs for node in self._nodes.values() if isinstance(node, Layer))
        written = sum(self._sizes.get(node.output, 0) for node in self._nodes.values())
        by_value = (1 - OVERHEAD) * (1 - MACS_SHARE) / max(1, written)
        by_mac = (1 - OVERHEAD) * MACS_SHARE / max(1, macs)
        costs = np.zeros(len(self._operators) + len(self._changed))
        for name, node in self._nodes.items():
            cost = by_value * self._sizes.get(node.output, 0) + by_mac * (node.macs if isinstance(node, Layer) else 0)
            for precision, factor in PRECISIONS.items():
                costs[self._operators[self.kinds[name], precision]] = factor * cost
        for (size, _), index in self._changed.items():
            costs[index] = CHANGE_COST * by_value * size
        return costs


def _read(node: Layer | Op) -> tuple[str, ...]:
    return node.activations if isinstance(node, Layer) else node.inputs


def _precision(name: str, node: Layer | Op, placement: Placement) -> str:
    """What the operator computes in; one whose weight is only stored in codes computes in float, at a cost of its own."""
    mode = placement.modes.get(node.name, "") if isinstance(node, Layer) else ""
    if name in placement.dynamic or mode == "dynamic":
        return "dynamic"
    if name in placement.integer:
        return "integer"
    return "stored" if mode == "float" else "float"


@dataclass(frozen=True)
class LatencyModel:
    """The model as learned from observations."""

    features: LatencyFeatures
    model: LinearModel

    @classmethod
    def fit(cls, features: LatencyFeatures, observations: Sequence[Observation]) -> LatencyModel:
        """Learn the costs; without observations they are the prior's."""
        ratios = np.array([observation.ratio for observation in observations])
        noise = np.array([max(observation.spread, NOISE) for observation in observations])
        rows = np.array([features.of(observation.policy) for observation in observations]).reshape(-1, len(features.prior))
        spread = DOUBT * features.prior + LEAST_SPREAD
        model = LinearModel(rows, ratios - 1.0, np.hypot(noise, MISFIT * ratios), features.prior, spread)
        return cls(features, model.with_honest_noise())

    def predict(self, policies: Sequence[Policy]) -> tuple[Array, Array]:
        """Ratio to FP32 and its standard deviation, each shape (N,)."""
        return self.predict_features(np.array([self.features.of(policy) for policy in policies]))

    def predict_features(self, features: Array) -> tuple[Array, Array]:
        """The same for policies whose features are known, shape (N, features)."""
        mean, spread = self.model.predict(features)
        return 1.0 + mean, np.hypot(spread, MISFIT * (1.0 + mean))

    def left_out(self) -> Array:
        """Ratio of each observation as predicted from all the others, shape (N,)."""
        return 1.0 + self.model.left_out()[0]


def prediction_error(predicted: Sequence[float], measured: Sequence[float]) -> str:
    """Mean error and rank correlation of predicted latency ratios, as a sentence."""
    from scipy.stats import spearmanr  # takes most of a second, and only the end of a search needs it

    error = float(np.mean([abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]))
    order = float(spearmanr(predicted, measured).statistic) if len(set(measured)) > 1 else 1.0
    return f"the latency of {len(measured)} trials was predicted within {error:.1%} on average (rank correlation {order:.2f})"
