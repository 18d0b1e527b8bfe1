"""Sampler `random`: every policy equally likely. The baseline that any other sampler must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocompress import Sampler, hookimpl

if TYPE_CHECKING:
    import optuna

    from autocompress import Problem


@dataclass
class RandomSearch(Sampler):
    """Independent uniform draws."""

    name = "random"

    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A seeded random sampler."""
        import optuna  # takes most of a second, and only a search needs it

        return optuna.samplers.RandomSampler(seed=seed)


@hookimpl
def autocompress_samplers() -> list[type[Sampler]]:
    """Random search."""
    return [RandomSearch]
