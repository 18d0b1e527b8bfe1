"""Size of a file, predicted from the files of single options: what each layer stores, in proportion to what cuts leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.choices.space import CHANNELS, SearchSpace
from autocompress.network.channels import ChannelGroup
from autocompress.network.graph import BaseGraph
from autocompress.policy import FLOAT_BITS, LayerPolicy
from autocompress.prediction.linear_model import LinearModel
from autocompress.problem import Choices, Effect

Array = NDArray[np.float64]

GRAPH_BYTES = (0.0, 500.0)
"""Prior mean and standard deviation of what any file takes more than FP32's, which is written in another way."""

LAYER_BYTES = (-40.0, 60.0)
"""Prior mean and standard deviation of what a file of many coded layers takes more for each than the files of one do: they
share the quantizers of the tensors between them."""

CUT_BYTES = (150.0, 150.0)
"""The same for each layer that is cut: it also loses biases and scales."""

MISFIT = 0.002
"""Standard deviation of what the model cannot express, as a share of the size: how well zeros pack in what is left."""


@dataclass(frozen=True)
class SizeModel:
    """Tables for whole arrays of policies, and what trials have taught.

    Attributes:
        effects: of the single options, for their sizes.
    """

    graph: BaseGraph
    groups: Mapping[str, ChannelGroup]
    space: SearchSpace
    effects: Mapping[str, Sequence[Effect]]

    def predict(self, choices: Choices, known: Choices, sizes: Array) -> tuple[Array, Array]:
        """Bytes and their standard deviation, each shape (N,), after the sizes of `known` policies, shape (M,)."""
        priors = np.array([GRAPH_BYTES, LAYER_BYTES, CUT_BYTES])
        noise = MISFIT * sizes + 1.0
        model = LinearModel(self._counts(known), sizes - self._added(known), noise, priors[:, 0], priors[:, 1])
        correction, spread = model.predict(self._counts(choices))
        added = self._added(choices)
        return added + correction, np.hypot(spread, MISFIT * added)

    def _added(self, choices: Choices) -> Array:
        """FP32's bytes, with each layer's weight as its option alone stores it, in proportion to what is left: shape (N,)."""
        total = np.full(len(choices), float(self._rewritten))
        for name, layer in self.graph.layers.items():
            whole = layer.parameters * FLOAT_BITS / 8
            stored = whole + self._saved[name][choices[:, self._columns[name]]] if name in self._columns else whole
            total += stored * self._left(name, choices) - whole
        return total

    def _counts(self, choices: Choices) -> Array:
        """1, coded layers and cut layers of each policy, shape (N, 3)."""
        coded = sum(table[choices[:, self._columns[name]]] for name, table in self._coded.items())
        cut = sum(self._left(name, choices) < 1 for name in self.graph.layers)
        return np.stack([np.broadcast_to(count, len(choices)) for count in (1, coded, cut)], axis=1).astype(np.float64)

    @cached_property
    def _coded(self) -> dict[str, NDArray[np.int64]]:
        """Layer that is searched to whether each of its options has codes."""
        searched = {name: options for name, options in self.space.layers.items() if name in self._columns}
        return {name: np.array([int(o.quantizer is not None) for o in options]) for name, options in searched.items()}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.space.sizes)}

    @cached_property
    def _saved(self) -> dict[str, Array]:
        """Layer that is searched to the bytes that each of its options alone adds to the FP32 file (they are negative)."""
        layers = [name for name in self._columns if name in self.graph.layers]
        return {name: np.array([effect.size_bytes - self._rewritten for effect in self.effects[name]]) for name in layers}

    @cached_property
    def _rewritten(self) -> int:
        """Bytes of the FP32 file as candidates are written, which is not as the exporter wrote it; where FP32 is an option."""
        layers = [(self.space.layers[name], self.effects[name]) for name in self._columns if name in self.space.layers]
        sizes = [effects[0].size_bytes for options, effects in layers if options[0] == LayerPolicy()]
        return min(sizes, default=len(self.graph.data))

    def _left(self, layer: str, choices: Choices) -> Array:
        """Share of the layer's weights that its groups' cuts leave, shape (N,)."""
        left = np.ones(len(choices))
        for column, shares in self._cuts.get(layer, ()):
            left = left * shares[choices[:, column]]
        return left

    @cached_property
    def _cuts(self) -> dict[str, list[tuple[int, Array]]]:
        """Layer to the columns that cut it, with the share that each option leaves."""
        found: dict[str, list[tuple[int, Array]]] = {}
        for name, options in self.space.channels.items():
            if CHANNELS + name not in self._columns:
                continue
            group = self.groups[name]
            shares = np.array([group.kept_count(option.sparsity) / group.size for option in options])
            for entry in group.entries:
                if entry.outputs or self.graph.layers[entry.module].kind != "depthwise":
                    found.setdefault(entry.module, []).append((self._columns[CHANNELS + name], shares))
        return found
