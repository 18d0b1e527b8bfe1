from __future__ import annotations

from collections import Counter

import optuna
from autocompress_plugins.random_search import RandomSearch

from autocompress.testing import check_settings


def test_every_choice_is_equally_likely() -> None:
    study = optuna.create_study(sampler=RandomSearch().create(seed=0))
    study.optimize(lambda trial: trial.suggest_int("layer", 0, 3), n_trials=200)
    counts = Counter(trial.params["layer"] for trial in study.trials)
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 30


def test_settings_survive_a_round_trip() -> None:
    check_settings(RandomSearch())
