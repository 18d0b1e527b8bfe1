"""A made-up search with a known answer, for testing samplers: costs nothing to evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autocompress.budget import Budget, Measurement
from autocompress.problem import Choices, Costs, Effect, Problem
from autocompress.record import DIRECTIONS, Objective, objective_values

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

MEASUREMENT = "measurement"
FP32_BYTES = 1_000_000
FP32_ACCURACY = 0.9
FP32_MS = 10.0
FP32 = Measurement(FP32_BYTES, 1.0, FP32_MS, 1.0, FP32_ACCURACY, 0.0, 100)


@dataclass
class SyntheticProblem(Problem):
    """Parameters with options that save bytes and time in equal steps, at a loss that grows with the square of the step.

    Attributes:
        sizes: parameter to its number of options.
        table_error: standard deviation of the logarithm of the tables' losses around the true ones (Gaussian).
        interaction: loss of each pair of neighbours beyond their sum, as a share of their geometric mean.
    """

    sizes: Mapping[str, int]
    objective: Objective = "accuracy"
    budget: Budget = field(default_factory=Budget)
    table_error: float = 0.4
    interaction: float = 0.1
    seed: int = 0
    baseline: Measurement = FP32

    @property
    def parameters(self) -> Mapping[str, int]:
        """Parameter name to its number of options."""
        return self.sizes

    @cached_property
    def _truth(self) -> list[NDArray[np.float64]]:
        """Loss of each option of each parameter alone."""
        random = np.random.default_rng(self.seed)
        scales = np.exp(random.normal(size=len(self.sizes))) * 0.1 / len(self.sizes)
        return [
            scale * (np.arange(count) / max(1, count - 1)) ** 2
            for scale, count in zip(scales, self.sizes.values(), strict=True)
        ]

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """Each parameter's part of bytes and time, shape (2, parameters), each row with sum 0.8."""
        drawn = np.random.default_rng(self.seed + 1).dirichlet(np.ones(len(self.sizes)), size=2)
        return 0.8 * drawn

    def effects(self) -> Mapping[str, Sequence[Effect]]:
        """The tables, off by the table error."""
        random = np.random.default_rng(self.seed + 2)
        tables = {}
        for name, losses, share in zip(self.sizes, self._truth, self._shares[0], strict=True):
            noisy = losses * np.exp(random.normal(scale=self.table_error, size=len(losses)))
            saved = share * np.linspace(0, 1, len(losses))
            effects = [
                Effect(float(loss), float(loss) / 2, round(FP32_BYTES * (1 - part)))
                for loss, part in zip(noisy, saved, strict=True)
            ]
            tables[name] = effects
        return tables

    def costs(self, choices: Choices, trials: Sequence[FrozenTrial]) -> Costs:
        """The true costs."""
        steps = choices / np.maximum(1, np.array(list(self.sizes.values())) - 1)
        size, latency = 1 - steps @ self._shares[0], 1 - steps @ self._shares[1]
        return Costs(size, np.zeros_like(size), latency, np.full_like(latency, 0.002))

    def divergence(self, choices: Choices) -> NDArray[np.float64]:
        """The true loss of policies, shape (N,)."""
        single = np.stack([losses[column] for losses, column in zip(self._truth, choices.T, strict=True)], axis=1)
        pairs = np.sqrt(single[:, 1:] * single[:, :-1]).sum(axis=1)
        total: NDArray[np.float64] = single.sum(axis=1) + self.interaction * pairs
        return total

    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured."""
        values = trial.user_attrs.get(MEASUREMENT)
        return None if values is None else Measurement.from_dict(values)

    def evaluate(self, choices: Choices) -> Measurement:
        """The figures of one policy, shape (1, parameters); the accuracy is only measured within the other limits."""
        costs, divergence = self.costs(choices, ()), float(self.divergence(choices)[0])
        size, latency = float(costs.size_ratio[0]), float(costs.latency_ratio[0])
        figures = Measurement(round(FP32_BYTES * size), size, FP32_MS * latency, latency)
        if any(excess > 0 for excess in self.budget.violations(figures).values()):
            return figures
        accuracy = FP32_ACCURACY - divergence / 2
        return replace(figures, accuracy=accuracy, accuracy_drop=divergence / 2, images=100, divergence=divergence)

    def finish(self, study: optuna.Study, trial: optuna.Trial, *, failed: bool = False) -> None:
        """Evaluate a trial and store everything as a search does."""
        import optuna

        states = optuna.trial.TrialState
        if failed:
            study.tell(trial, state=states.FAIL)
            return
        figures = self.evaluate(self.choices(trial.params))
        trial.set_user_attr(MEASUREMENT, figures.to_dict())
        for name, excess in self.budget.violations(figures).items():
            trial.set_constraint(name, excess)
        if figures.accuracy is None:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, objective_values(self.objective, figures))

    def new_study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """An empty study in memory."""
        import optuna

        return optuna.create_study(sampler=sampler, directions=DIRECTIONS[self.objective])

    def ask(self, study: optuna.Study) -> optuna.Trial:
        """The next trial."""
        import optuna

        return study.ask({name: optuna.distributions.IntDistribution(0, count - 1) for name, count in self.sizes.items()})
