"""The problem of a real search: its tables are measured on files, its costs learned from them and from the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from autocompress.budget import Budget, Latency, Measurement
from autocompress.choices.observer_columns import ObserverColumns
from autocompress.choices.space import SearchSpace
from autocompress.display.progress import Progress
from autocompress.policy import Policy
from autocompress.prediction.cost_model import CostModel
from autocompress.prediction.effects import Journal, SensitivitySettings, measure_effects
from autocompress.prediction.latency_model import Observation
from autocompress.prediction.timed_options import TimedOptions, known_options, time_options
from autocompress.problem import Choices, Costs, Effect, Problem
from autocompress.record import Objective, TrialRecord
from autocompress.studies.study import KIND, RECORD
from autocompress.trials.trial import Bench

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LATEST = 200
"""Trials that costs are learned from: a prediction takes the same time after a thousand."""

UNTIMED = 4
"""Proposals that are made before single options are timed: seeds have taught the latency model enough for a first answer."""

ENOUGH_TIMED = 5
"""Trials before an error of their predictions means something."""


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
    _rows: dict[int, Choices] = field(default_factory=dict)
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
        known = [(trial, figures) for trial in trials[-LATEST:] if (figures := self.measured(trial))]
        sized = [(self._row(trial), figures.size_bytes) for trial, figures in known if figures.size_bytes is not None]
        rows = np.concatenate([row for row, _ in sized]) if sized else np.zeros((0, len(self.parameters)), dtype=np.int64)
        sizes = np.array([size for _, size in sized], dtype=np.float64)
        observed = [self._observation(trial, figures.latency) for trial, figures in known if figures.latency is not None]
        return self._costs.predict(choices, rows, sizes, [*self._timed_singles(trials), *observed])

    def _timed_singles(self, trials: Sequence[FrozenTrial]) -> Sequence[Observation]:
        """Timed files of single options, measured when the first proposals are finished."""
        proposed = sum(trial.user_attrs.get(KIND, "trial") == "trial" for trial in trials)
        return self.timed_options.observed if proposed >= UNTIMED or "timed_options" in self.__dict__ else []

    def _row(self, trial: FrozenTrial) -> Choices:
        if trial.number not in self._rows:
            self._rows[trial.number] = self.choices(trial.params)
        return self._rows[trial.number]

    def canonical(self, choices: Choices) -> Choices:
        """The observer of a tensor changes nothing where no layer makes the tensor integer."""
        return self._observed.canonical(choices) if self.space.observers else choices

    @cached_property
    def _observed(self) -> ObserverColumns:
        return ObserverColumns.of(self.space, self.effects())

    def _observation(self, trial: FrozenTrial, latency: Latency) -> Observation:
        if trial.number not in self._observations:
            self._observations[trial.number] = Observation.of(self.space.policy(trial.params), latency)
        return self._observations[trial.number]

    @cached_property
    def _costs(self) -> CostModel:
        capabilities = self.bench.components.target.capabilities()
        return CostModel(self.bench.graph, self.bench.groups, capabilities, self.space, self.effects())

    @cached_property
    def timed_options(self) -> TimedOptions:
        """The files of single options, timed where the latency matters for the goal."""
        if self.objective not in ("latency", "pareto") and "latency_ratio" not in self.ratio_limits():
            return TimedOptions([], {}, 0.0)
        parts = (self.bench, self.space, self._costs.features, self.settings.seconds, self.journal, self.progress)
        with self.progress.stage("latency of single options"):
            return time_options(*parts)

    @property
    def tables(self) -> tuple[Mapping[str, Sequence[Effect]], TimedOptions] | None:
        """Effects of single options, and their times as far as they were measured; None: this search never asked for any."""
        if "_effects" not in self.__dict__:
            return None
        return self.effects(), known_options(self.space, self._costs.features, self.journal)

    def predicted(self, policy: Policy) -> dict[str, float]:
        """What the tables alone say of a policy, as if effects added up; empty when they were not measured."""
        if "_effects" not in self.__dict__:
            return {}
        row = self.canonical(self.choices(self.space.indices(policy)))
        costs = self.costs(row, [])
        effects = zip(self.effects().values(), row[0], strict=True)
        figures = {"divergence": sum(options[index].divergence for options, index in effects)}
        figures |= {"size_ratio": float(costs.size_ratio[0]), "latency_ratio": float(costs.latency_ratio[0])}
        return figures

    def latency_predictions(self, records: Sequence[TrialRecord]) -> dict[int, float]:
        """Number of each timed trial to its latency ratio as predicted from all other measurements; empty: too few trials."""
        timed = {r.policy.digest: r for r in records if r.measurement.latency}
        if "_effects" not in self.__dict__ or len(timed) < ENOUGH_TIMED:
            return {}
        observed = [Observation.of(r.policy, r.measurement.latency) for r in timed.values() if r.measurement.latency]
        predicted = self._costs.left_out(observed, self._timed_singles([]))
        return {record.number: ratio for record, ratio in zip(timed.values(), predicted, strict=True)}

    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured."""
        if trial.number not in self._figures and RECORD in trial.user_attrs:
            self._figures[trial.number] = Measurement.from_dict(trial.user_attrs[RECORD]["measurement"])
        return self._figures.get(trial.number)
