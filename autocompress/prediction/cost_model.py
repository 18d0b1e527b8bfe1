"""What policies will cost: size and latency, as a sampler asks for them, for hundreds of policies at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.choices.space import SearchSpace
from autocompress.components import Capabilities
from autocompress.network.channels import ChannelGroup
from autocompress.network.graph import BaseGraph
from autocompress.prediction.latency_model import LatencyFeatures, LatencyModel, Observation
from autocompress.prediction.size_model import SizeModel
from autocompress.problem import Choices, Costs, Effect


class CostModel:
    """Size and latency models over the rows of a search space."""

    def __init__(
        self,
        graph: BaseGraph,
        groups: Mapping[str, ChannelGroup],
        capabilities: Capabilities,
        space: SearchSpace,
        effects: Mapping[str, Sequence[Effect]],
    ) -> None:
        self._graph, self._space = graph, space
        self._size = SizeModel(graph, groups, space, effects)
        self.features = LatencyFeatures(graph, groups, capabilities)
        self._rows: dict[bytes, NDArray[np.float64]] = {}
        self._fitted: tuple[Sequence[Observation], LatencyModel] | None = None

    def predict(self, choices: Choices, known: Choices, sizes: NDArray[np.float64], observed: Sequence[Observation]) -> Costs:
        """Costs of N policies.

        Args:
            choices: shape (N, parameters).
            known: policies whose `sizes` in bytes, shape (M,), were measured: shape (M, parameters).
            observed: files whose latency was measured.
        """
        whole = float(len(self._graph.data))
        size, size_spread = self._size.predict(choices, known, sizes)
        latency, latency_spread = self._latency(observed).predict_features(self._latency_features(choices))
        return Costs(size / whole, size_spread / whole, latency, latency_spread)

    def _latency(self, observed: Sequence[Observation]) -> LatencyModel:
        """The model, fitted once for the questions of one proposal."""
        if self._fitted is None or self._fitted[0] != observed:
            self._fitted = observed, LatencyModel.fit(self.features, observed)
        return self._fitted[1]

    def left_out(self, trials: Sequence[Observation], timed_options: Sequence[Observation]) -> list[float]:
        """Latency ratio of each trial, predicted from all other measurements."""
        predicted = LatencyModel.fit(self.features, [*trials, *timed_options]).left_out()
        return [float(ratio) for ratio in predicted[: len(trials)]]

    def _latency_features(self, choices: Choices) -> NDArray[np.float64]:
        """Shape (N, features); computed once for policies that differ only in what does not matter for the latency."""
        classes = np.stack([table[column] for table, column in zip(self._classes, choices.T, strict=True)], axis=1)
        keys = [row.tobytes() for row in classes]
        for key, row in zip(keys, choices, strict=True):
            if key not in self._rows:
                indices = {name: int(index) for name, index in zip(self._space.sizes, row, strict=True)}
                self._rows[key] = self.features.of(self._space.policy(indices))
        return np.array([self._rows[key] for key in keys])

    @cached_property
    def _classes(self) -> list[NDArray[np.int16]]:
        """For each parameter the number of the first option that computes as fast as each option does."""
        return [np.array(self._space.speed_classes(name), dtype=np.int16) for name in self._space.sizes]
