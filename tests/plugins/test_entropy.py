"""Against the definition, written out with scipy's relative entropy, and against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.entropy import Entropy, divergence
from numpy.typing import NDArray
from scipy.stats import entropy

from autocompress import Observer
from autocompress.testing import ObserverContract

random = np.random.default_rng(0)


class TestEntropy(ObserverContract):
    @pytest.fixture
    def observer(self) -> Observer:
        return Entropy()


def observed(bits: int, *batches: NDArray[np.float64]) -> tuple[float, float]:
    observer = Entropy()
    for batch in batches:
        observer.update(batch.astype(np.float32))
    return observer.range(bits)


def by_definition(counts: NDArray[np.int64], first: int, last: int, cells: int) -> float:
    """Clip to the end bins; merge the bins into cells, spread each cell over its filled bins; then scipy."""
    p = counts[first:last].astype(float)
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    q = np.zeros(last - first)
    members: dict[int, list[int]] = {}
    for position in range(last - first):
        members.setdefault(position * cells // (last - first), []).append(position)
    for bins in members.values():
        filled = [position for position in bins if counts[first + position]]
        for position in filled:
            q[position] = sum(counts[first + other] for other in bins) / len(filled)
    q = np.where((p > 0) & (q == 0), 0.5, q)
    return float(entropy(p[p > 0], q[p > 0]))


@pytest.mark.parametrize(("first", "last"), [(0, 64), (8, 56), (20, 44), (32, 50)])
@pytest.mark.parametrize("cells", [4, 7, 16, 100])
def test_divergence_is_its_definition(first: int, last: int, cells: int) -> None:
    counts = random.poisson(np.exp(-((np.arange(64) - 32) ** 2) / 100) * 20) * (random.random(64) < 0.7)
    assert divergence(counts, first, last, cells) == pytest.approx(by_definition(counts, first, last, cells), abs=1e-12)


def test_nothing_is_lost_with_a_bin_in_each_cell() -> None:
    assert divergence(random.integers(0, 9, 64), 0, 64, 64) == pytest.approx(0.0, abs=1e-12)


def test_range_is_the_one_of_least_divergence() -> None:
    values = random.laplace(size=200_000)
    low, high = observed(4, values)
    counts, _ = np.histogram(values, 8192, (-np.abs(values).max(), np.abs(values).max()))
    reach = round(max(-low, high) / np.abs(values).max() * 4096)
    least = by_definition(counts, 4096 - reach, 4096 + reach, 16)
    for other in (0.5, 0.8, 1.25, 1.6):
        wider = min(4096, round(reach * other))
        assert least <= by_definition(counts, 4096 - wider, 4096 + wider, 16)


def test_rare_outliers_are_clipped() -> None:
    values = np.append(random.standard_normal(200_000), [60.0, -60.0])
    low, high = observed(8, values)
    assert -12 < low < -3
    assert 3 < high < 12


def test_agrees_with_the_runtimes_own_calibration() -> None:
    """ONNX Runtime smooths empty bins in another way, which two million values make nearly irrelevant."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = np.append(random.standard_normal(2_000_000), random.uniform(-20, 20, 20))
    extreme = np.abs(values).max()
    histogram, edges = np.histogram(values, 1001, (-extreme, extreme))
    collector = HistogramCollector("entropy", True, 1001, 256, 99.99, {})
    expected = collector.get_entropy_threshold((histogram, edges, values.min(), values.max(), extreme), 256)
    np.testing.assert_allclose(observed(8, values[: 1 << 20], values[1 << 20 :]), expected[:2], rtol=0.1)


def test_with_more_cells_than_bins_nothing_is_clipped() -> None:
    values = random.laplace(size=50_000).astype(np.float32).astype(np.float64)
    assert observed(16, values) == (values.min(), values.max())


def test_low_stays_at_zero_without_negative_values() -> None:
    low, high = observed(8, np.maximum(random.standard_normal(50_000), 0))
    assert low == 0.0
    assert high > 2.5
