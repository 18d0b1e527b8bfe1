from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.moving_average import MovingAverage

from autocompress import Observer
from autocompress.errors import ConfigError
from autocompress.testing import ObserverContract

BATCHES = [np.asarray([-1.0, 2.0]), np.asarray([-3.0, 1.0]), np.asarray([0.5, 10.0])]


class TestMovingAverage(ObserverContract):
    @pytest.fixture(params=[MovingAverage(), MovingAverage(0.0), MovingAverage(0.5)], ids=str)
    def observer(self, request: pytest.FixtureRequest) -> Observer:
        assert isinstance(request.param, Observer)
        return request.param


def observed(momentum: float) -> tuple[float, float]:
    observer = MovingAverage(momentum)
    for batch in BATCHES:
        observer.update(batch.astype(np.float32))
    return observer.range(8)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_is_the_weighted_mean_of_the_extremes(momentum: float) -> None:
    weights = [momentum**age for age in (2, 1, 0)]
    lows, highs = [-1.0, -3.0, 0.0], [2.0, 1.0, 10.0]  # 0 included
    expected = np.average(lows, weights=weights), np.average(highs, weights=weights)
    np.testing.assert_allclose(observed(momentum), expected, rtol=1e-9)


def test_no_past_is_the_last_batch() -> None:
    assert observed(0.0) == (0.0, 10.0)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_refuses_what_is_no_weight(momentum: float) -> None:
    with pytest.raises(ConfigError, match=r"observer\.moving_average\.momentum=.*expected at least 0, below 1"):
        MovingAverage(momentum)
