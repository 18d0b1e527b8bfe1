from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from autocompress_plugins.squared_error import SquaredError
from numpy.typing import NDArray
from torchmetrics.regression import MeanSquaredError

from autocompress import Metric
from autocompress.errors import DataError
from autocompress.testing import MetricContract

random = np.random.default_rng(0)


class TestSquaredError(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return SquaredError()

    @pytest.fixture
    def expected(self, metric: Metric) -> NDArray[Any]:
        return random.standard_normal((32, 3)).astype(np.float32)

    @pytest.fixture
    def perfect(self, metric: Metric, expected: NDArray[Any]) -> NDArray[Any]:
        return expected.copy()


def test_is_minus_torchmetrics() -> None:
    outputs, targets = random.standard_normal((2, 50, 4, 3))
    theirs = float(MeanSquaredError()(torch.from_numpy(outputs), torch.from_numpy(targets)))
    assert SquaredError().value(SquaredError().statistics(outputs, targets)) == pytest.approx(-theirs)


def test_one_number_for_each_example_may_lack_its_axis() -> None:
    assert SquaredError().statistics(np.asarray([[1.0], [2.0]]), np.asarray([1, 5])).tolist() == [0.0, -9.0]


def test_another_number_of_targets_is_refused() -> None:
    with pytest.raises(DataError, match=r"outputs have shape \(4, 3\), targets \(4,\)"):
        SquaredError().statistics(np.zeros((4, 3)), np.zeros(4))
