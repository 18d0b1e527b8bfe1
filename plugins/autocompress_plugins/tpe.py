"""Sampler `tpe`: Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl

if TYPE_CHECKING:
    import optuna

    from autocompress import Problem


@dataclass
class Tpe(Sampler):
    """Multivariate TPE (Falkner et al. 2018, arXiv 1807.01774). Handles constraints; trials in flight count as bad.

    Attributes:
        n_startup_trials: random trials before the model is used; trials that were enqueued count.
        multivariate: model the parameters together and not one by one.
    """

    name = "tpe"

    n_startup_trials: int = 10
    multivariate: bool = True

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A seeded TPE sampler."""
        import optuna  # takes most of a second, and only a search needs it

        return optuna.samplers.TPESampler(
            n_startup_trials=self.n_startup_trials, multivariate=self.multivariate, constant_liar=True, seed=seed
        )


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """TPE."""
    return [Tpe]
