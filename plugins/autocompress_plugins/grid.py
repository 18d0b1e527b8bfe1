"""Sampler `grid`: every policy once, in random order. For spaces small enough to be tried whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

    from autocompress import Problem


@dataclass
class Grid(Sampler):
    """All policies of the space.

    Attributes:
        max_policies: a space with more is refused: all of them are held in memory.
    """

    name = "grid"

    max_policies: int = 100_000

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A sampler that visits the policies in a seeded order.

        Raises:
            ConfigError: the space has more policies than may be enumerated.
        """
        self._check(problem)
        import optuna  # takes most of a second, and only a search needs it

        class AskedGrid(optuna.samplers.GridSampler):
            """Leaves it to the search to end: Optuna's own way works inside of `Study.optimize` only, and raises here."""

            def after_trial(
                self,
                study: optuna.Study,
                trial: optuna.trial.FrozenTrial,
                state: optuna.trial.TrialState,
                values: Sequence[float] | None,
            ) -> None:
                pass

        return AskedGrid({name: list(range(count)) for name, count in problem.parameters.items()}, seed=seed)

    def _check(self, problem: Problem) -> None:
        policies = math.prod(problem.parameters.values())
        if policies > self.max_policies:
            raise ConfigError(
                f"sampler.grid: {len(problem.parameters)} parameters make {policies:.3g} policies; expected at most "
                f"sampler.grid.max_policies={self.max_policies}. Search fewer layers (space.include), give them fewer options, "
                "or choose another sampler"
            )


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """Grid search."""
    return [Grid]
