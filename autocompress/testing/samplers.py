"""The contract of `Sampler`."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from autocompress.budget import Budget
from autocompress.components import (
    Sampler,
)
from autocompress.record import Objective
from autocompress.synthetic import SyntheticProblem
from autocompress.testing.round_trip import check_settings


class SamplerContract:
    """The promises of `Sampler`: it proposes option indices of a search, as Optuna asks for them."""

    @pytest.fixture
    def sampler(self) -> Sampler:
        """The component under test."""
        raise NotImplementedError("a subclass of SamplerContract gives the fixture `sampler`")

    def test_depends_on_the_seed_only(self, sampler: Sampler) -> None:
        """The same seed proposes the same, whatever was drawn before; another one proposes something else."""
        first = _proposals(sampler, seed=0)
        np.random.default_rng().random()
        assert _proposals(copy.deepcopy(sampler), seed=0) == first != _proposals(sampler, seed=1)

    def test_proposes_indices_of_the_tables(self, sampler: Sampler) -> None:
        """Integers from 0 to the number of options less 1, also after trials that failed or missed the budget."""
        for proposal in _proposals(sampler):
            assert all(isinstance(proposal[name], int) and 0 <= proposal[name] < count for name, count in _TABLES.items())

    def test_does_not_repeat_one_proposal(self, sampler: Sampler) -> None:
        """What is asked for again and again has to differ."""
        assert len({tuple(proposal.values()) for proposal in _proposals(sampler)}) > 5

    def test_takes_several_objectives(self, sampler: Sampler) -> None:
        """The objective `pareto` has three."""
        assert len(_proposals(sampler, objective="pareto")) == _TRIALS

    def test_settings_survive_a_round_trip(self, sampler: Sampler) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(sampler)


_TABLES = {"conv1": 4, "conv2": 9, "head": 2, "channels/conv1": 5}
"""Parameter to its number of options."""

_TRIALS = 16


def _proposals(sampler: Sampler, seed: int = 0, objective: Objective = "accuracy") -> list[dict[str, int]]:
    """Parameters of the trials of a small study: one queued, one that fails, some that violate a constraint."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = SyntheticProblem(sizes=_TABLES, objective=objective, budget=Budget(size_ratio=0.6))
    study = problem.new_study(sampler.create(problem, seed))
    study.enqueue_trial(dict.fromkeys(_TABLES, 0))
    for number in range(_TRIALS):
        problem.finish(study, problem.ask(study), failed=number == 3)
    return [dict(trial.params) for trial in study.trials]
