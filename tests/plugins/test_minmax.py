from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.minmax import MinMax

from autocompress import Observer
from autocompress.testing import ObserverContract


class TestMinMax(ObserverContract):
    @pytest.fixture
    def observer(self) -> Observer:
        return MinMax()


def test_range_is_the_extremes_of_all_batches() -> None:
    observer = MinMax()
    for batch in ([[1.0, -0.5]], [[3.0, 2.0]], [[-2.0]]):
        observer.update(np.asarray(batch, np.float32))
    assert observer.range(8) == (-2.0, 3.0)


def test_range_includes_zero() -> None:
    observer = MinMax()
    observer.update(np.asarray([2.0, 3.0], np.float32))
    assert observer.range(8) == (0.0, 3.0)
