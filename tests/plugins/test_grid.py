from __future__ import annotations

import re

import pytest
from autocompress_plugins.grid import Grid

from autocompress import Sampler, SyntheticProblem
from autocompress.errors import ConfigError
from autocompress.testing import SamplerContract


class TestGrid(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return Grid()


def test_visits_every_policy() -> None:
    """As a search asks for them: queued trials among them, and one that fails; asking for more is no error."""
    problem = SyntheticProblem({"stem": 2, "inner": 3, "head": 2})
    study = problem.new_study(Grid().create(problem, seed=0))
    study.enqueue_trial({"stem": 1, "inner": 1, "head": 1})
    for number in range(14):
        problem.finish(study, problem.ask(study), failed=number == 2)
    seen = {tuple(trial.params.values()) for trial in study.trials}
    assert len(seen) == 12
    assert len({tuple(trial.params.values()) for trial in study.trials[1:9]}) == 8


def test_a_space_too_large_to_enumerate_is_refused() -> None:
    problem = SyntheticProblem({f"layer{number}": 9 for number in range(40)})
    words = "sampler.grid: 40 parameters make 1.48e+38 policies; expected at most sampler.grid.max_policies=100000."
    with pytest.raises(ConfigError, match=f"^{re.escape(words)} .*space.include"):
        Grid().create(problem, seed=0)


def test_the_limit_can_be_set() -> None:
    problem = SyntheticProblem({"stem": 2, "head": 3})
    assert Grid(max_policies=6).create(problem, seed=0)
    with pytest.raises(ConfigError, match="2 parameters make 6 policies"):
        Grid(max_policies=5).create(problem, seed=0)
