"""What a sampler may know about a search: the decisions, the goal, what each option does alone, and what a policy will cost."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.budget import Budget, Measurement

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from autocompress.record import Objective

Choices = NDArray[np.int64]
"""Option indices of N policies, shape (N, parameters), columns in the order of `Problem.parameters`."""


PREDICTED = frozenset({"size_bytes", "size_ratio", "latency_ms", "latency_ratio", "accuracy_drop"})
"""Limits on figures that are predicted, from costs and effects."""


@dataclass(frozen=True)
class Effect:
    """What one option does when everything else stays FP32 with all its channels, measured on calibration examples.

    That of an observer is what it does beyond the best one for its tensors; all other options are measured with the best ones.

    Attributes:
        divergence: mean distance of the outputs from FP32's (`output_divergence`), at least 0.
        drop: of the metric, in its own unit, on the same examples.
        size_bytes: of the whole file.
    """

    divergence: float
    drop: float
    size_bytes: int


@dataclass(frozen=True)
class Costs:
    """What policies are predicted to cost, each shape (N,); spreads are standard deviations."""

    size_ratio: NDArray[np.float64]
    size_spread: NDArray[np.float64]
    latency_ratio: NDArray[np.float64]
    latency_spread: NDArray[np.float64]


class Problem(ABC):
    """A search as its sampler sees it. The study itself holds the trials: a sampler keeps no state of its own.

    Attributes:
        baseline: figures of the FP32 file, its latency against itself.
        expected_gain: set by a sampler that knows: by how much its latest proposal should be better than the best trial, in
            units of what a trial can tell apart.
    """

    objective: Objective
    budget: Budget
    baseline: Measurement
    expected_gain: float = math.inf

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, int]:
        """Parameter name to its number of options, at least two, from the most precise to the smallest."""

    @abstractmethod
    def effects(self) -> Mapping[str, Sequence[Effect]]:
        """Parameter to the effect of each option alone. The first call measures what is not on disk yet: minutes."""

    @abstractmethod
    def costs(self, choices: Choices, trials: Sequence[FrozenTrial]) -> Costs:
        """Predicted size and latency, learned from single options and from the finished trials."""

    @abstractmethod
    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured, as far as it got; None: nothing."""

    def canonical(self, choices: Choices) -> Choices:
        """The same policies, N rows, with each decision that changes nothing in them at its option of least effect."""
        return choices

    def ratio_limits(self) -> dict[str, float]:
        """The budget's limits on `size_ratio` and `latency_ratio`, those in bytes and milliseconds among them."""
        size, latency = self.baseline.size_bytes or 1, self.baseline.latency_ms or 1.0
        named = self.budget.limits()
        in_ratios = {
            "size_ratio": [named.get("size_ratio"), named["size_bytes"] / size if "size_bytes" in named else None],
            "latency_ratio": [named.get("latency_ratio"), named["latency_ms"] / latency if "latency_ms" in named else None],
        }
        known = {name: [limit for limit in limits if limit is not None] for name, limits in in_ratios.items()}
        return {name: min(limits) for name, limits in known.items() if limits}

    def unpredicted(self, figures: Measurement) -> list[float] | None:
        """Normalised excess over each limit that nothing predicts; None: one of these figures was not measured."""
        names = [name for name in self.budget.limits() if name not in PREDICTED]
        unknown = not set(names).isdisjoint(self.budget.unmeasured(figures))
        violations = self.budget.violations(figures)
        return None if unknown else [violations[name] for name in names]

    def choices(self, parameters: Mapping[str, Any]) -> Choices:
        """A trial's parameters as one row; those that it does not name are 0. Shape (1, parameters)."""
        return np.array([[int(parameters.get(name, 0)) for name in self.parameters]], dtype=np.int64)

    def indices(self, row: NDArray[np.int64]) -> dict[str, int]:
        """Inverse of `choices` for one row, shape (parameters,)."""
        return {name: int(index) for name, index in zip(self.parameters, row, strict=True)}
