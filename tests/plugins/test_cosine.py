from __future__ import annotations

import numpy as np
import pytest
import torch
from autocompress_plugins.cosine import Cosine
from torchmetrics.regression import CosineSimilarity

from autocompress import Metric
from autocompress.testing import MetricContract

random = np.random.default_rng(0)


class TestCosine(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return Cosine()


def test_agrees_with_torchmetrics() -> None:
    outputs, reference = random.standard_normal((2, 50, 16))
    theirs = CosineSimilarity(reduction="none")(torch.from_numpy(outputs), torch.from_numpy(reference))
    np.testing.assert_allclose(Cosine().statistics(outputs, reference), theirs.numpy(), rtol=1e-5)


def test_length_does_not_count_and_direction_does() -> None:
    reference = np.asarray([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    outputs = np.asarray([[3.0, 3.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(Cosine().statistics(outputs, reference), [1, -1, 0, 1, 0], atol=1e-12)


def test_an_output_with_more_axes_is_one_vector() -> None:
    outputs, reference = random.standard_normal((2, 5, 4, 3))
    expected = Cosine().statistics(outputs.reshape(5, 12), reference.reshape(5, 12))
    np.testing.assert_array_equal(Cosine().statistics(outputs, reference), expected)
