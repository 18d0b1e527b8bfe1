from __future__ import annotations

from collections import Counter

import optuna
import pytest
from autocompress_plugins.random_search import RandomSearch

from autocompress import Sampler, SyntheticProblem
from autocompress.testing import SamplerContract


class TestRandomSearch(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return RandomSearch()


def test_every_choice_is_equally_likely() -> None:
    study = optuna.create_study(sampler=RandomSearch().create(SyntheticProblem({}), seed=0))
    study.optimize(lambda trial: trial.suggest_int("layer", 0, 3), n_trials=200)
    counts = Counter(trial.params["layer"] for trial in study.trials)
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 30
