from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.percentile import Percentile
from numpy.typing import NDArray

from autocompress import Observer
from autocompress.errors import ConfigError
from autocompress.testing import ObserverContract

random = np.random.default_rng(0)
SKEWED = [(random.standard_normal((40, 500)) * 3**exponent + 1).astype(np.float32) for exponent in range(4)]


class TestPercentile(ObserverContract):
    @pytest.fixture(params=[Percentile(), Percentile(99.0), Percentile(100.0)], ids=str)
    def observer(self, request: pytest.FixtureRequest) -> Observer:
        assert isinstance(request.param, Observer)
        return request.param


def observed(percentile: float, *batches: NDArray[np.float32]) -> tuple[float, float]:
    observer = Percentile(percentile)
    for batch in batches:
        observer.update(batch)
    return observer.range(8)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_agrees_with_numpy_on_all_batches(percentile: float) -> None:
    exact = np.percentile(np.concatenate(SKEWED), [100 - percentile, percentile])
    np.testing.assert_allclose(observed(percentile, *SKEWED), exact, rtol=0.01)
    assert observed(percentile, *SKEWED) == observed(percentile, *reversed(SKEWED))


def test_ignores_rare_outliers_on_both_sides() -> None:
    values = np.append(random.uniform(-1, 1, 100_000), [1e6, -1e6]).astype(np.float32)
    np.testing.assert_allclose(observed(99.99, values), (-1, 1), rtol=0.01)


def test_all_values_are_the_extremes() -> None:
    whole = np.concatenate(SKEWED)
    np.testing.assert_allclose(observed(100.0, *SKEWED), (whole.min(), whole.max()), rtol=1e-6)


def test_low_stays_at_zero_without_negative_values() -> None:
    assert observed(99.99, np.abs(SKEWED[0]))[0] == 0.0


@pytest.mark.parametrize("percentile", [0.0, 50.0, 100.1, float("nan")])
def test_refuses_what_is_no_upper_percentile(percentile: float) -> None:
    with pytest.raises(ConfigError, match="above 50, at most 100"):
        Percentile(percentile)
