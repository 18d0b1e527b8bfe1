"""The sampler: from tables and trials to the next policy. It keeps nothing: the study is its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autocompress import Costs, Measurement, Problem
from autocompress_plugins.knapsack.candidates import at_prices, mutants, neighbours
from autocompress_plugins.knapsack.goal import DropLink, Front, single_value
from autocompress_plugins.knapsack.ridge import estimated
from autocompress_plugins.knapsack.surrogate import LossSurrogate

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

STATIC = 4
"""Proposals from the mean of what is known, before draws are mixed in."""

TOLD_APART = {"accuracy": 0.001, "latency": 0.01, "size": 0.001, "pareto": 0.0005}
"""Differences of drop, ratios, and share of the front's volume that mean something."""

LATEST = 200
"""Trials that figures without a model of their own are learned from."""

MUTANTS = 150
PARENTS = 4
REFINEMENTS = 3

NOTHING = 1e-9
"""A loss below this is that of rounding in another order of additions."""

TRIAL_WEIGHT = 10.0
"""Weight of a trial against a single option where drops are learned from losses: it saw so many more examples."""


class KnapsackSampler(optuna.samplers.BaseSampler):
    """Proposes the policy that tables, corrected by trials, predict to be best within the budget."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._memory = _Memory(problem)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters, always: they decide together."""
        return {name: IntDistribution(0, count - 1) for name, count in self._problem.parameters.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next policy, as indices into the tables."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number and other.params]
        random = np.random.default_rng([self._seed, trial.number])
        return self._problem.indices(_Proposal(self._problem, others, self._memory, random).best())

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random option for a parameter that a queued policy leaves open."""
        random = np.random.default_rng([self._seed, trial.number, len(param_name)])
        assert isinstance(param_distribution, IntDistribution)
        return int(random.integers(param_distribution.low, param_distribution.high + 1))


@dataclass(frozen=True)
class _Known:
    """A trial whose losses were measured.

    Attributes:
        missed: sum of what it is over the limits.
        score: for the goal, lower is better.
    """

    row: NDArray[np.int64]
    figures: Measurement
    missed: float
    score: float


class _Memory:
    """What finished trials say, which does not change: the study knows it all, this is only faster."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._known: dict[int, _Known | None] = {}

    def row(self, trial: FrozenTrial) -> NDArray[np.int64]:
        """Its policy, shape (parameters,)."""
        if not trial.state.is_finished():
            return self._read_row(trial)
        if trial.number not in self._rows:
            self._rows[trial.number] = self._read_row(trial)
        return self._rows[trial.number]

    def _read_row(self, trial: FrozenTrial) -> NDArray[np.int64]:
        return np.asarray(self._problem.canonical(self._problem.choices(trial.params))[0])

    def known(self, trial: FrozenTrial) -> _Known | None:
        """A finished trial's figures; None: its losses were not measured."""
        if trial.number not in self._known:
            self._known[trial.number] = self._read(trial)
        return self._known[trial.number]

    def _read(self, trial: FrozenTrial) -> _Known | None:
        figures = self._problem.measured(trial)
        if figures is None or figures.divergence is None:
            return None
        missed = sum(max(0.0, excess) for excess in self._problem.budget.violations(figures).values())
        return _Known(self.row(trial), figures, missed, _score(self._problem, figures))


def _score(problem: Problem, figures: Measurement) -> float:
    latency, size = figures.latency_ratio or 1.0, figures.size_ratio or 1.0
    scores = {"accuracy": figures.divergence or 0.0, "latency": latency, "size": size}
    pareto = float(np.log(latency * size)) + 8 * (figures.accuracy_drop or 0.0)
    return scores.get(problem.objective, pareto)


class _Proposal:
    """One decision about what to try next."""

    def __init__(self, problem: Problem, trials: Sequence[FrozenTrial], memory: _Memory, random: np.random.Generator) -> None:
        self._problem, self._memory, self._random = problem, memory, random
        self._finished = [trial for trial in trials if trial.state.is_finished()]
        self._tried = {memory.row(trial).tobytes() for trial in trials if trial.state != TrialState.WAITING}
        fp32 = problem.canonical(np.zeros((1, len(problem.parameters)), dtype=np.int64))[0]
        if all(options[index].divergence < NOTHING for options, index in zip(problem.effects().values(), fp32, strict=True)):
            self._tried.add(fp32.tobytes())
        self._sizes = np.array(list(problem.parameters.values()))
        self._effects = list(problem.effects().values())
        self._spread = float(random.choice([0.0, 0.5, 1.0])) if len(self._known) > STATIC else 0.0
        self._caution = float(random.random()) if self._spread else 0.5

    def best(self) -> NDArray[np.int64]:
        """The policy to try."""
        rows = np.concatenate([at_prices(self._tables, self._linear_costs, self._sizes), self._variations()])
        chosen = self._pick(rows)
        for _ in range(REFINEMENTS):
            better = self._pick(neighbours(chosen, self._sizes))
            if (better == chosen).all():
                break
            chosen = better
        self._problem.expected_gain = self._gain(chosen)
        return chosen

    def _gain(self, row: NDArray[np.int64]) -> float:
        """How much better than the best trial the policy should be, in units of what a trial can tell apart."""
        costs, loss = self._costs(row[None]), self._surrogate.predict(row[None])
        if self._problem.objective == "pareto":
            return float(self._front.gain(self._link.drop(loss), costs)[0]) / TOLD_APART["pareto"]
        best = next((known.figures for known in map(self._known.__getitem__, self._order_known) if not known.missed), None)
        if best is None:
            return float("inf")
        before = np.array([best.divergence or 0.0])
        gains = {
            "accuracy": float((self._link.drop(before) - self._link.drop(loss))[0]),
            "latency": (best.latency_ratio or 1.0) - float(costs.latency_ratio[0]),
            "size": (best.size_ratio or 1.0) - float(costs.size_ratio[0]),
        }
        return gains[self._problem.objective] / TOLD_APART[self._problem.objective]

    @cached_property
    def _known(self) -> list[_Known]:
        return [known for trial in self._finished if (known := self._memory.known(trial)) is not None]

    @cached_property
    def _surrogate(self) -> LossSurrogate:
        tables = [np.array([effect.divergence for effect in effects]) for effects in self._effects]
        rows = np.array([known.row for known in self._known], dtype=np.int64).reshape(-1, len(tables))
        return LossSurrogate(tables, rows, np.array([known.figures.divergence for known in self._known], dtype=np.float64))

    @cached_property
    def _draw(self) -> tuple[Array, Array]:
        return self._surrogate.draw(self._random, self._spread)

    @property
    def _tables(self) -> Array:
        return self._draw[0]

    @cached_property
    def _link(self) -> DropLink:
        """How drops follow from losses, from single options and trials."""
        singles = [effect for effects in self._effects for effect in effects if np.isfinite(effect.divergence)]
        trials = [known.figures for known in self._known]
        losses = np.array([*(e.divergence for e in singles), *(f.divergence or 0.0 for f in trials)])
        drops = np.array([*(e.drop for e in singles), *(f.accuracy_drop or 0.0 for f in trials)])
        return DropLink.fit(losses, drops, np.array([1.0] * len(singles) + [TRIAL_WEIGHT] * len(trials)))

    @cached_property
    def _loss_limit(self) -> float:
        """Where the allowed drop is expected; drawn around it, for that is uncertain."""
        allowed = self._problem.budget.accuracy_drop
        if allowed is None:
            return float("inf")
        return max(self._link.loss(allowed * self._random.uniform(0.5, 1.1)), 1e-9)

    @cached_property
    def _linear_costs(self) -> list[Array]:
        """Size and latency of each option, shape (P, options) each.

        The mean of what it changes in the most precise policy and in the best one known: what lies between two integer layers
        may be integer too, so neither tells the whole.
        """
        bases = [np.zeros(len(self._sizes), dtype=np.int64), *self._parents[:1]]
        changes = [self._changes(base) for base in bases]
        return [np.mean([change[index] for change in changes], axis=0) for index in range(2)]

    def _changes(self, base: NDArray[np.int64]) -> tuple[Array, Array]:
        """What each option costs in place of the base's."""
        rows = neighbours(base, self._sizes)
        costs = self._costs(rows)
        tables = np.zeros((2, len(base), int(self._sizes.max())))
        changed = rows[1:] != base
        parameters = changed.argmax(axis=1)
        options = rows[1:][np.arange(len(parameters)), parameters]
        for table, values in zip(tables, (costs.size_ratio, costs.latency_ratio), strict=True):
            table[parameters, options] = values[1:] - values[0]
        shifted = tables - tables[:, :, :1]
        return shifted[0], shifted[1]

    @cached_property
    def _parents(self) -> Choices:
        """The best trials, for the goal; none yet: the most precise policy."""
        if not self._known:
            return np.zeros((1, len(self._sizes)), dtype=np.int64)
        return np.array([self._known[index].row for index in self._order_known[:PARENTS]])

    @cached_property
    def _order_known(self) -> NDArray[np.intp]:
        """The trials whose losses are known, the best first; what is missed of the budget counts most."""
        scores = np.array([known.missed * 1e3 + known.score for known in self._known])
        if self._problem.objective == "pareto":
            scores = scores + self._random.normal(size=len(scores))  # another part of the front each time
        return np.argsort(scores, kind="stable")

    def _variations(self) -> Choices:
        return mutants(self._parents, self._sizes, MUTANTS, self._random)

    def _costs(self, rows: Choices) -> Costs:
        return self._problem.costs(rows, self._finished)

    def _pick(self, rows: Choices) -> NDArray[np.int64]:
        """The most promising policy that was not tried; if all were, any at random."""
        rows = self._problem.canonical(rows)
        fresh = np.array([row for row in rows if row.tobytes() not in self._tried], dtype=np.int64)
        if not len(fresh):
            return np.array([self._random.integers(count) for count in self._sizes])
        losses = self._surrogate.drawn(*self._draw, fresh)
        chosen: NDArray[np.int64] = fresh[self._order(fresh, losses, self._costs(fresh))[0]]
        return chosen

    def _order(self, rows: Choices, losses: Array, costs: Costs) -> NDArray[np.intp]:
        """Indices of the candidates, the best first."""
        if self._problem.objective == "pareto":
            return np.argsort(-self._front.gain(self._link.drop(losses), costs), kind="stable")
        missed, score = single_value(self._problem, losses, costs, self._loss_limit, self._caution)
        return np.lexsort((score, missed + self._unpredicted(rows, costs)))

    def _unpredicted(self, rows: Choices, costs: Costs) -> Array:
        """What candidates may be over the limits that nothing else predicts, shape (N,)."""
        known, excess = self._excesses
        if not excess[:-1].size:
            return np.zeros(len(rows))
        estimate = estimated(rows, costs, excess[-1], known[:-1], self._costs(known[:-1]), excess[:-1])
        return np.asarray(np.maximum(0.0, estimate).sum(axis=1))

    @cached_property
    def _excesses(self) -> tuple[Choices, Array]:
        """Policies whose excess over those limits was measured, FP32 last, shape (M, P), and theirs, shape (M, limits)."""
        measured = [(self._memory.row(trial), self._problem.measured(trial)) for trial in self._finished[-LATEST:]]
        measured.append((np.zeros(len(self._sizes), dtype=np.int64), self._problem.baseline))
        pairs = [(row, self._problem.unpredicted(figures)) for row, figures in measured if figures]
        known = [(row, excess) for row, excess in pairs if excess is not None]
        return np.array([row for row, _ in known]), np.array([excess for _, excess in known])

    @cached_property
    def _front(self) -> Front:
        return Front([known.figures for known in self._known], self._problem.baseline, self._random)
