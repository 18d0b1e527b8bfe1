from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.accuracy import Accuracy
from sklearn.metrics import accuracy_score

from autocompress import Metric
from autocompress.testing import MetricContract


class TestAccuracy(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return Accuracy()


def test_agrees_with_sklearn() -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.standard_normal((200, 5)), random.integers(5, size=200)
    statistics = Accuracy().statistics(outputs, labels)
    assert Accuracy().value(statistics) == accuracy_score(labels, outputs.argmax(axis=1))
    assert set(statistics) == {0.0, 1.0}


def test_accepts_maps_of_one_pixel() -> None:
    outputs = np.eye(3)[:, :, None, None]
    assert Accuracy().statistics(outputs, np.asarray([[0], [1], [0]])).tolist() == [1, 1, 0]
