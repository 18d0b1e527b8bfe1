"""The problem of a real search: its tables are measured on files, its costs learned from them and from the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from autocompress.budget import Budget, Measurement
from autocompress.effects import Journal, SensitivitySettings, measure_effects
from autocompress.problem import Choices, Costs, Effect, Problem
from autocompress.progress import Progress
from autocompress.record import Objective, TrialRecord
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
    bench: Bench
    space: SearchSpace
    settings: SensitivitySettings
    journal: Journal
    progress: Progress

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
        raise NotImplementedError

    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured."""
        record = trial.user_attrs.get(RECORD)
        return None if record is None else TrialRecord.from_dict(record).measurement
