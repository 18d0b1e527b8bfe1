from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.agreement import Agreement

from autocompress import Metric
from autocompress.testing import MetricContract


class TestAgreement(MetricContract):
    @pytest.fixture
    def metric(self) -> Metric:
        return Agreement()


def test_counts_equal_decisions() -> None:
    reference = np.asarray([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    outputs = np.asarray([[0.1, 0.2], [0.0, 9.0], [-5.0, 0.0]])
    assert Agreement().statistics(outputs, reference).tolist() == [1, 0, 1]


def test_is_asked_against_the_reference() -> None:
    assert Agreement.against_reference
