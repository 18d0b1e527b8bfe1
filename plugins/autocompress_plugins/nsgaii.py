"""Sampler `nsgaii`: the genetic algorithm NSGA-II."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    import optuna

    from autocompress import Problem


@dataclass
class Nsgaii(Sampler):
    """Children of the fittest policies so far (Deb et al. 2002, doi 10.1109/4235.996017).

    Handles constraints; only trials that were measured to the end become parents.

    Attributes:
        population_size: policies of a generation, seeds and random ones in the first; a search of 40 trials sees two of 20.
        mutation_prob: share of a child's parameters that are drawn anew; None: one parameter on average.
        crossover_prob: share of children that have two parents.
    """

    name = "nsgaii"

    population_size: int = 20
    mutation_prob: float | None = None
    crossover_prob: float = 0.9

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise ConfigError(f"sampler.nsgaii.population_size={self.population_size}: expected at least 2 parents")

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A seeded NSGA-II sampler whose first generation holds the trials that were enqueued."""
        import optuna  # takes most of a second, and only a search needs it

        class SeededNsgaii(optuna.samplers.NSGAIISampler):
            """Gives every trial its generation at once.

            Optuna does so when it samples a trial, which it never does for one whose parameters were all enqueued: such a
            trial would have no generation, and never become a parent.
            """

            def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
                super().before_trial(study, trial)
                self.get_trial_generation(study, trial)

        return SeededNsgaii(
            population_size=self.population_size,
            mutation_prob=self.mutation_prob,
            crossover_prob=self.crossover_prob,
            seed=seed,
        )


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """NSGA-II."""
    return [Nsgaii]
