"""Intervals against scipy's bootstrap and against the normal approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
from autocompress_plugins.accuracy import Accuracy
from numpy.typing import NDArray

from autocompress import Metric
from autocompress.accuracy.intervals import interval, paired_drop

EXAMPLES = 2000
Z = 1.959964


@dataclass
class Spread(Metric):
    """A figure that is not a mean of its rows: standard deviation of the first column plus mean of the second."""

    name = "spread"

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        return outputs.astype(np.float64)

    def value(self, statistics: NDArray[np.float64]) -> float:
        return float(statistics[:, 0].std() + statistics[:, 1].mean())


@pytest.fixture
def reference() -> NDArray[np.float64]:
    """1 where FP32 is right: about 90 % of the examples."""
    return (np.random.default_rng(1).random(EXAMPLES) < 0.9).astype(np.float64)


@pytest.fixture
def candidate(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wrong where FP32 is, and on 3 % more; right on 1 % that FP32 missed."""
    random = np.random.default_rng(2)
    lost, won = random.random(EXAMPLES) < 0.03, random.random(EXAMPLES) < 0.01
    return np.where(reference == 1, ~lost, won).astype(np.float64)


def test_drop_agrees_with_scipy(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
    found = paired_drop(Accuracy(), reference, candidate, resamples=4000)
    expected = scipy.stats.bootstrap(
        (reference, candidate),
        lambda a, b: np.mean(a) - np.mean(b),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(7),
    )
    assert found.value == pytest.approx(reference.mean() - candidate.mean())
    two = 2 / EXAMPLES  # the drop moves in steps of one example
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=two)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=two)
    assert found.spread == pytest.approx(float(expected.standard_error), rel=0.05)


def test_drop_agrees_with_the_normal_approximation(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
    difference = reference - candidate
    error = float(difference.std()) / math.sqrt(EXAMPLES)
    found = paired_drop(Accuracy(), reference, candidate)
    assert found.spread == pytest.approx(error, rel=0.06)
    assert found.low == pytest.approx(found.value - Z * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.value + Z * error, abs=0.3 * error)
    assert found.upper == pytest.approx(found.value + 1.281552 * error, abs=0.25 * error)
    assert found.low < found.value < found.upper < found.high


def test_pairing_is_narrower(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
    """The same figures without the pairing: most of what varies is which examples are hard, for both."""
    paired = paired_drop(Accuracy(), reference, candidate)
    apart = paired_drop(Accuracy(), reference, np.random.default_rng(3).permutation(candidate))
    assert apart.value == pytest.approx(paired.value)
    unpaired = math.sqrt((reference.var() + candidate.var()) / EXAMPLES)
    assert apart.spread == pytest.approx(unpaired, rel=0.1)
    assert paired.spread < 0.6 * apart.spread


def test_equal_files_lose_nothing_for_sure(reference: NDArray[np.float64]) -> None:
    found = paired_drop(Accuracy(), reference, reference.copy())
    assert (found.value, found.low, found.high, found.upper, found.spread) == (0, 0, 0, 0, 0)


def test_drop_of_a_gain_is_negative(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
    forward, backward = (paired_drop(Accuracy(), *pair) for pair in [(reference, candidate), (candidate, reference)])
    assert backward.value == -forward.value < 0
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    assert backward.upper != pytest.approx(-forward.upper)


def test_interval_of_a_share_agrees_with_the_normal_approximation(reference: NDArray[np.float64]) -> None:
    share = float(reference.mean())
    error = math.sqrt(share * (1 - share) / EXAMPLES)
    low, high = interval(Accuracy(), reference)
    assert (low, high) == pytest.approx((share - Z * error, share + Z * error), abs=0.3 * error)


def test_interval_narrows_with_the_root_of_the_examples(reference: NDArray[np.float64]) -> None:
    wide, narrow = (float(np.diff(interval(Accuracy(), reference[:count]))[0]) for count in (EXAMPLES // 16, EXAMPLES))
    assert wide / narrow == pytest.approx(4, rel=0.25)


def test_metric_decides_what_its_rows_mean() -> None:
    rows = np.random.default_rng(4).standard_normal((400, 2)) * [2.0, 1.0]
    low, high = interval(Spread(), rows)
    # a standard deviation has the standard error s / sqrt(2 n), a mean s / sqrt(n)
    error = math.sqrt(2.0**2 / (2 * 400) + 1.0**2 / 400)
    assert Spread().value(rows) == pytest.approx(rows[:, 0].std() + rows[:, 1].mean())
    assert (high - low) / 2 == pytest.approx(Z * error, rel=0.15)
    assert paired_drop(Spread(), rows, rows + np.array([0.0, 0.5])).value == pytest.approx(-0.5)


def test_the_same_data_gives_the_same_interval(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
    assert paired_drop(Accuracy(), reference, candidate) == paired_drop(Accuracy(), reference, candidate)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 % intervals of 300 samples from a known share: 285 are expected to hold it, 272 are 3.3 deviations below."""
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        low, high = interval(Accuracy(), (random.random(300) < 0.7).astype(np.float64), resamples=200)
        hits += low <= 0.7 <= high
    assert 272 <= hits <= 298
