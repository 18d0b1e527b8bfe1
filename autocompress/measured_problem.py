"""The problem of a real search: its tables are measured on files, its costs learned from them and from the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from autocompress.budget import Budget, Latency, Measurement
from autocompress.cost_model import CostModel
from autocompress.effects import Journal, SensitivitySettings, measure_effects
from autocompress.latency_model import Observation
from autocompress.probes import Probes, time_options
from autocompress.problem import Choices, Costs, Effect, Problem
from autocompress.progress import Progress
from autocompress.record import Objective
from autocompress.space import SearchSpace
from autocompress.study import RECORD
from autocompress.trial import Bench

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass
class MeasuredProblem(Problem):
    """Measures when first asked.

    Attributes:
        journal: where the tables are kept.
    """

    objective: Objective
    budget: Budget
    baseline: Measurement
    bench: Bench
    space: SearchSpace
    settings: SensitivitySettings
    journal: Journal
    progress: Progress
    _figures: dict[int, Measurement] = field(default_factory=dict)
    _observations: dict[int, Observation] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, int]:
        """Parameter name to its number of options."""
        return self.space.sizes

    def effects(self) -> Mapping[str, Sequence[Effect]]:
        """The measured tables."""
        return self._effects

    @cached_property
    def _effects(self) -> Mapping[str, Sequence[Effect]]:
        with self.progress.stage("sensitivity"):
            return measure_effects(self.bench, self.space, self.settings, self.journal, self.progress)

    def costs(self, choices: Choices, trials: Sequence[FrozenTrial]) -> Costs:
        """Predicted size and latency."""
        known = [(trial, figures) for trial in trials if (figures := self.measured(trial))]
        sized = [(self.choices(trial.params), figures.size_bytes) for trial, figures in known if figures.size_bytes is not None]
        rows = np.concatenate([row for row, _ in sized]) if sized else np.zeros((0, len(self.parameters)), dtype=np.int64)
        sizes = np.array([size for _, size in sized], dtype=np.float64)
        observed = [self._observation(trial, figures.latency) for trial, figures in known if figures.latency is not None]
        return self._costs.predict(choices, rows, sizes, [*self.probes.observed, *observed])

    def _observation(self, trial: FrozenTrial, latency: Latency) -> Observation:
        if trial.number not in self._observations:
            self._observations[trial.number] = Observation.of(self.space.policy(trial.params), latency)
        return self._observations[trial.number]

    @cached_property
    def _costs(self) -> CostModel:
        capabilities = self.bench.components.target.capabilities()
        return CostModel(self.bench.graph, self.bench.groups, capabilities, self.space, self.effects())

    @cached_property
    def probes(self) -> Probes:
        """The files of single options, timed where the latency matters for the goal."""
        if self.objective not in ("latency", "pareto") and "latency_ratio" not in self.ratio_limits():
            return Probes([], {}, 0.0)
        parts = (self.bench, self.space, self._costs.features, self.settings.seconds, self.journal, self.progress)
        with self.progress.stage("latency of single options"):
            return time_options(*parts)

    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured."""
        if trial.number not in self._figures and RECORD in trial.user_attrs:
            self._figures[trial.number] = Measurement.from_dict(trial.user_attrs[RECORD]["measurement"])
        return self._figures.get(trial.number)
