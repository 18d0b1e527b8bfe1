"""Settings that would never end, fail late or mean nothing are refused when they are read."""

from __future__ import annotations

import pytest

from autocompress.config import compose_settings
from autocompress.errors import ConfigError
from autocompress.inputs.data import DataSettings, load_splits
from autocompress.inputs.models import ModelSettings, build_model
from autocompress.measuring.device import TimingSettings
from autocompress.registry import load_registry
from autocompress.searching.loop import SearchSettings
from autocompress.trials.trial import TrialSettings

ODD = [
    *("search.seed=-1", "search.seed=2147483648", "search.timeout=nan", "search.timeout=-1", "search.recoverable_drop=inf"),
    *("timing.seconds=inf", "timing.seconds=nan", "timing.precision=-0.1", "sensitivity.seconds=nan", "probe.seconds=inf"),
    *("study.wait_seconds=inf", "trial.check_images=0", "trial.minimum_subset=0", "trial.reconnect_seconds=nan"),
    *("trial.subsets=[0.5,nan]", "trial.subsets=[2]", "budget.size_ratio=nan", "budget.latency_percentile=100"),
]


@pytest.mark.parametrize("override", ODD)
def test_what_means_nothing_is_refused_by_its_name(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}=.*: expected ") as error:
        compose_settings([override], load_registry())
    assert "\n" not in str(error.value)


def test_zero_is_taken_where_it_means_something() -> None:
    assert SearchSettings(timeout=0.0, recoverable_drop=0.0).timeout == 0
    assert TimingSettings(precision=0.0).precision == 0
    assert TrialSettings(subsets=[]).subsets == []


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_that_some_generator_does_not_take_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.seed={seed}: expected 0 to 2147483647"):
        load_splits(DataSettings(seed=seed))
    with pytest.raises(ConfigError, match=rf"model\.seed={seed}: expected 0 to 2147483647"):
        build_model(ModelSettings(factory="torch.nn:ReLU", seed=seed))
