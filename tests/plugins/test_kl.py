from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.kl import Kl
from scipy.special import softmax
from scipy.stats import entropy

from autocompress import Metric
from autocompress.testing import MetricContract

random = np.random.default_rng(0)


class TestKl(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return Kl()


def test_agrees_with_scipy() -> None:
    outputs, reference = random.standard_normal((50, 10)), random.standard_normal((50, 10))
    expected = -entropy(softmax(reference, axis=1), softmax(outputs, axis=1), axis=1)
    np.testing.assert_allclose(Kl().statistics(outputs, reference), expected, rtol=1e-9)


def test_reference_itself_has_zero_whatever_is_added_to_all_logits() -> None:
    reference = random.standard_normal((5, 10))
    np.testing.assert_allclose(Kl().statistics(reference + 1000, reference), np.zeros(5), atol=1e-9)


def test_certain_but_wrong_is_finite() -> None:
    assert Kl().statistics(np.asarray([[1e4, 0.0]]), np.asarray([[0.0, 1e4]])).tolist() == [-1e4]


def test_is_asked_against_the_reference() -> None:
    assert Kl.against_reference
