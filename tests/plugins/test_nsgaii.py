from __future__ import annotations

import optuna
import pytest
from autocompress_plugins.nsgaii import Nsgaii

from autocompress import Sampler, SyntheticProblem
from autocompress.errors import ConfigError
from autocompress.testing import SamplerContract

PARAMETERS, OPTIONS, SEEDS, CHILDREN = 20, 9, 6, 12
GOOD = {1, 2}
"""The options of the policies that are enqueued: random ones rarely have them."""


class TestNsgaii(SamplerContract):
    @pytest.fixture(params=[Nsgaii(population_size=4), Nsgaii(population_size=4, mutation_prob=0.5)], ids=str)
    def sampler(self, request: pytest.FixtureRequest) -> Sampler:
        assert isinstance(request.param, Sampler)
        return request.param


def children(sampler: optuna.samplers.BaseSampler) -> list[optuna.trial.FrozenTrial]:
    """What is proposed after as many enqueued policies as the population has."""
    problem = SyntheticProblem({f"layer{number}": OPTIONS for number in range(PARAMETERS)}, objective="pareto")
    study = problem.new_study(sampler)
    for seed in range(SEEDS):
        study.enqueue_trial({name: 1 + (seed + number) % 2 for number, name in enumerate(problem.parameters)})
    for _ in range(SEEDS + CHILDREN):
        problem.finish(study, problem.ask(study))
    return study.trials[SEEDS:]


def share_of_good(trials: list[optuna.trial.FrozenTrial]) -> float:
    values = [value for trial in trials for value in trial.params.values()]
    return sum(value in GOOD for value in values) / len(values)


def test_enqueued_policies_become_parents() -> None:
    """Without mutation a child has nothing but options of its parents; random policies would have two in nine."""
    sampler = Nsgaii(population_size=SEEDS, mutation_prob=0.0)
    assert share_of_good(children(sampler.create(SyntheticProblem({}), seed=0))) == 1.0


def test_optuna_ignores_enqueued_policies() -> None:
    """The reason for the subclass: once this fails, Optuna's own sampler will do."""
    sampler = optuna.samplers.NSGAIISampler(population_size=SEEDS, mutation_prob=0.0, seed=0)
    assert share_of_good(children(sampler)[:SEEDS]) < 0.5


def test_a_sampler_made_anew_goes_on() -> None:
    """As when a search resumes: generations are in the study."""
    problem = SyntheticProblem({f"layer{number}": OPTIONS for number in range(PARAMETERS)})
    study = problem.new_study(Nsgaii(population_size=4).create(problem, seed=0))
    for _ in range(10):
        problem.finish(study, problem.ask(study))
        study.sampler = Nsgaii(population_size=4).create(problem, seed=0)
    key = "SeededNsgaii:generation"
    assert [trial.system_attrs[key] for trial in study.trials] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_one_parent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"population_size=1: expected at least 2"):
        Nsgaii(population_size=1)
