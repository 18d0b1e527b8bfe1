"""Sampler `knapsack`: measured tables first, then what trials teach. The default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl

if TYPE_CHECKING:
    import optuna

    from autocompress import Problem


@dataclass
class Knapsack(Sampler):
    """A multiple-choice knapsack over measured tables, corrected by an additive Bayesian model of the trials.

    Each proposal takes the tables as they are believed now, or one possible set of them (Thompson 1933), solves the knapsack at
    a grid of prices, adds variations of the best trials, and picks what is predicted to be best within the budget.
    """

    name = "knapsack"

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A sampler for the problem."""
        from autocompress_plugins.knapsack.sampler import KnapsackSampler  # optuna takes most of a second

        return KnapsackSampler(problem, seed)


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """The default sampler."""
    return [Knapsack]
