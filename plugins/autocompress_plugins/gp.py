"""Sampler `gp`: Bayesian optimization with Gaussian processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl

if TYPE_CHECKING:
    import optuna

    from autocompress import Problem


@dataclass
class Gp(Sampler):
    """Optuna's Gaussian processes (Matern 5/2), one for each objective and each limit, with log expected improvement.

    Ament et al. 2023, arXiv 2310.20708. Handles constraints; learns from trials that were measured to the end only. Fitting
    takes longer with each trial: seconds for several objectives.

    Attributes:
        n_startup_trials: random trials before the model is used; trials that were enqueued count.
    """

    name = "gp"

    n_startup_trials: int = 10

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A seeded Gaussian process sampler."""
        import optuna  # takes most of a second, and only a search needs it

        return optuna.samplers.GPSampler(n_startup_trials=self.n_startup_trials, seed=seed)


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """Gaussian processes."""
    return [Gp]
