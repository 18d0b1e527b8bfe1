from __future__ import annotations

import optuna
import pytest
from autocompress_plugins.random_search import RandomSearch
from autocompress_plugins.tpe import Tpe

from autocompress import Sampler, SyntheticProblem
from autocompress.testing import SamplerContract

LAYERS = 6


def objective(trial: optuna.Trial) -> float:
    """Indices into ordered tables, as in a search, under one constraint."""
    indices = [trial.suggest_int(f"layer{number}", 0, 3) for number in range(LAYERS)]
    trial.set_constraint("size", sum(indices) - 9)
    return float(sum((index - number % 4) ** 2 for number, index in enumerate(indices)))


def found(sampler: Sampler, seed: int = 0, trials: int = 40) -> list[float]:
    study = optuna.create_study(sampler=sampler.create(SyntheticProblem({}), seed))
    study.enqueue_trial({f"layer{number}": 0 for number in range(LAYERS)})
    study.optimize(objective, n_trials=trials)
    return [trial.values[0] for trial in study.trials]


class TestTpe(SamplerContract):
    @pytest.fixture(params=[Tpe(), Tpe(multivariate=False), Tpe(n_startup_trials=2)], ids=str)
    def sampler(self, request: pytest.FixtureRequest) -> Sampler:
        assert isinstance(request.param, Sampler)
        return request.param


def test_learns_from_trials() -> None:
    later = [sum(found(sampler, seed)[20:]) for seed in range(3) for sampler in (Tpe(), RandomSearch())]
    assert all(tpe < random for tpe, random in zip(later[::2], later[1::2], strict=True))
