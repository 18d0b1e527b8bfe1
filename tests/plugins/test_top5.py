from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.top5 import Top5
from sklearn.metrics import top_k_accuracy_score

from autocompress import Metric
from autocompress.testing import MetricContract


class TestTop5(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return Top5()


def test_agrees_with_sklearn() -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.standard_normal((200, 20)), random.integers(20, size=200)
    expected = top_k_accuracy_score(labels, outputs, k=5, labels=np.arange(20))
    assert Top5().value(Top5().statistics(outputs, labels)) == expected


def test_of_equal_outputs_the_lower_class_comes_first() -> None:
    assert Top5().statistics(np.zeros((8, 8)), np.arange(8)).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_everything_is_right_with_five_classes() -> None:
    assert Top5().statistics(np.eye(5), np.arange(5)[::-1]).all()


def test_not_a_number_is_not_right() -> None:
    assert not Top5().statistics(np.full((2, 8), np.nan), np.arange(2)).any()
