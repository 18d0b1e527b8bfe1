from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.f1 import F1
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torchmetrics.classification import MulticlassF1Score

from autocompress import Metric
from autocompress.testing import MetricContract


class TestF1(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return F1()


def examples(classes: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Uneven classes, of which the last never occurs."""
    random = np.random.default_rng(seed)
    shares = np.append(np.arange(1, classes) / np.arange(1, classes).sum(), 0)
    labels = random.choice(classes, 300, p=shares)
    return random.standard_normal((300, classes)) + 2 * np.eye(classes)[labels], labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [3, 10])
def test_agrees_with_sklearn_and_torchmetrics(classes: int, seed: int) -> None:
    outputs, labels = examples(classes, seed)
    value = F1().value(F1().statistics(outputs, labels))
    assert value == pytest.approx(f1_score(labels, outputs.argmax(axis=1), average="macro"))
    theirs = MulticlassF1Score(classes, average="macro")(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert value == pytest.approx(float(theirs), rel=1e-5)


def test_is_no_mean_over_examples() -> None:
    outputs, labels = examples(5, 0)
    statistics = F1().statistics(outputs, labels)
    parts = [F1().value(statistics[at : at + 30]) for at in range(0, 300, 30)]
    assert np.mean(parts) != pytest.approx(F1().value(statistics), abs=1e-3)
