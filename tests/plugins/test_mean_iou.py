from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from autocompress_plugins.mean_iou import MeanIou
from numpy.typing import NDArray
from torchmetrics.classification import MulticlassJaccardIndex

from autocompress import Metric
from autocompress.errors import DataError
from autocompress.testing import MetricContract

CLASSES = 4


def maps(count: int, seed: int = 0) -> NDArray[Any]:
    """Targets with borders that do not count."""
    random = np.random.default_rng(seed)
    found = random.integers(CLASSES, size=(count, 6, 5))
    return np.where(random.random(found.shape) < 0.1, 255, found)


class TestMeanIou(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return MeanIou()

    @pytest.fixture
    def expected(self, metric: Metric) -> NDArray[Any]:
        return maps(32)

    @pytest.fixture
    def perfect(self, metric: Metric, expected: NDArray[Any]) -> NDArray[Any]:
        return 10 * np.moveaxis(np.eye(256, dtype=np.float32)[expected][..., :CLASSES], -1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchmetrics(seed: int) -> None:
    targets = maps(20, seed)
    targets[targets == 3] = 0  # a class that never occurs, but is predicted
    outputs = np.random.default_rng(seed).standard_normal((20, CLASSES, 6, 5))
    theirs = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255)
    expected = float(theirs(torch.from_numpy(outputs), torch.from_numpy(targets)))
    assert MeanIou().value(MeanIou().statistics(outputs, targets)) == pytest.approx(expected, rel=1e-5)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    outputs = np.zeros((1, 3, 1, 4))
    outputs[0, 0] = 1.0
    assert MeanIou().value(MeanIou().statistics(outputs, np.asarray([[[0, 0, 0, 1]]]))) == (3 / 4 + 0) / 2


def test_nothing_counts_where_all_is_ignored() -> None:
    assert MeanIou().value(MeanIou().statistics(np.zeros((1, 3, 1, 4)), np.full((1, 1, 4), 255))) == 0.0


def test_is_of_the_summed_pixels() -> None:
    statistics = np.asarray([[1.0, 0.0, 2.0, 1.0], [4.0, 0.0, 4.0, 1.0]])
    assert MeanIou().value(statistics) == (5 / 6 + 0 / 2) / 2


def test_a_target_that_is_no_class_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"mean_iou: target 7; the model has 3 classes \(0 to 2\): set metric.mean_iou.ignore_index"
    ):
        MeanIou().statistics(np.zeros((1, 3, 2, 2)), np.full((1, 2, 2), 7))


@pytest.mark.parametrize("targets", [(2, 4, 4), (1, 4), (1,), (1, 1, 4, 4)])
def test_other_shapes_are_refused(targets: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected \(N, classes, height, width\) and \(N, height, width\)"):
        MeanIou().statistics(np.zeros((1, 3, 4, 4)), np.zeros(targets, np.int64))
