from __future__ import annotations

import pytest
from autocompress_plugins.gp import Gp
from autocompress_plugins.random_search import RandomSearch

from autocompress import Sampler, SyntheticProblem
from autocompress.budget import Budget, Measurement
from autocompress.synthetic import MEASUREMENT
from autocompress.testing import SamplerContract


class TestGp(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return Gp(n_startup_trials=2)


def measured(sampler: Sampler, seed: int) -> list[Measurement]:
    """Trials 10 to 30 of a search for the smallest file that loses little: a limit that is only known once measured."""
    problem = SyntheticProblem({f"layer{number}": 4 for number in range(6)}, "size", Budget(accuracy_drop=0.01), seed=seed)
    study = problem.new_study(sampler.create(problem, seed))
    for _ in range(30):
        problem.finish(study, problem.ask(study))
    return [Measurement.from_dict(trial.user_attrs[MEASUREMENT]) for trial in study.trials[10:]]


def within(figures: list[Measurement]) -> list[float]:
    """Sizes of the files that meet the limit."""
    return [f.size_ratio for f in figures if f.size_ratio is not None and (f.accuracy_drop or 0.0) <= 0.01]


@pytest.mark.parametrize("seed", range(2))
def test_learns_what_is_within_the_limit_and_small(seed: int) -> None:
    ours, random = within(measured(Gp(), seed)), within(measured(RandomSearch(), seed))
    assert len(ours) > len(random)
    assert min(ours) < min(random, default=1.0)
