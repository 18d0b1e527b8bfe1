from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autocompress_plugins.function import Function
from numpy.typing import NDArray

from autocompress import Metric, Quality
from autocompress.config import compose_settings
from autocompress.errors import ConfigError, DataError
from autocompress.registry import load_registry
from autocompress.testing import MetricContract

PATH = "small_metric:minus_absolute_error"


class TestFunction(MetricContract):
    @pytest.fixture(params=[False, True], ids=["targets", "reference"])
    def metric(self, request: pytest.FixtureRequest) -> Metric:
        return Function(PATH, against_reference=request.param)

    @pytest.fixture
    def perfect(self, metric: Metric, expected: NDArray[Any]) -> NDArray[Any]:
        return expected.copy() if metric.against_reference else np.eye(10, dtype=np.float32)[expected]


def test_is_the_mean_of_the_functions_numbers() -> None:
    statistics = Function(PATH).statistics(np.asarray([[1.0, 0.0], [0.5, 0.5]]), np.asarray([0, 0]))
    assert statistics.tolist() == [0.0, -0.5]
    assert Function(PATH).value(statistics) == -0.25


def test_is_configured_by_its_path() -> None:
    overrides = ["metric=function", f"metric.function.path={PATH}", "metric.function.percent=true"]
    metric = compose_settings(overrides, load_registry()).components.metric
    assert metric == Function(PATH, percent=True)
    assert Quality.of(metric) == Quality("function", percent=True)
    assert Quality.of(Function(PATH)) == Quality("function", percent=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"no value for metric\.function\.path"),
        (["metric.function.path=small_metric"], r"metric\.function\.path: 'small_metric' is not a function's address"),
        (["metric.function.path=small_metric:minus_absolute_eror"], r"did you mean 'minus_absolute_error'\?"),
        (["metric.function.path=nowhere_to_be_found:f"], r"metric\.function\.path: cannot import 'nowhere_to_be_found'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_settings(["metric=function", *overrides], load_registry())


@pytest.mark.parametrize("name", ["one_number", "not_finite"])
def test_other_answers_are_refused(name: str) -> None:
    metric = Function(f"small_metric:{name}")
    with pytest.raises(DataError, match=rf"small_metric:{name} returned shape .* one finite number for each of 4 examples"):
        metric.statistics(np.zeros((4, 2)), np.zeros(4, np.int64))
