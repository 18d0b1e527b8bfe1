"""Counts in bins, against numpy's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress import Histogram
from autocompress.tensors.histogram import BINS, SAMPLE

random = np.random.default_rng(0)
NORMAL = random.standard_normal(4_000).astype(np.float32)


def of(*batches: NDArray[np.floating]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


def test_counts_are_numpys() -> None:
    found = of(NORMAL)
    expected, edges = np.histogram(NORMAL, BINS, (-found.limit, found.limit))
    assert np.abs(np.cumsum(found.counts - expected)).max() <= 1  # a value may be on an edge, up to rounding
    assert np.abs(found.counts - expected).sum() <= 0.01 * len(NORMAL)
    np.testing.assert_allclose(found.values(np.arange(BINS)), (edges[1:] + edges[:-1]) / 2, atol=1e-6)
    assert (found.low, found.high) == (NORMAL.min(), NORMAL.max())
    assert found.limit == np.abs(NORMAL).max()


def test_growing_keeps_the_counts() -> None:
    found = of(NORMAL * 0.01, NORMAL * 0.1, NORMAL)
    expected, _ = np.histogram(np.concatenate([NORMAL * 0.01, NORMAL * 0.1, NORMAL]), BINS, (-found.limit, found.limit))
    assert found.counts.sum() == 3 * 4_000
    assert np.abs(np.cumsum(found.counts - expected)).max() <= 8
    assert np.abs(NORMAL).max() <= found.limit < 2 * np.abs(NORMAL).max()


def test_zeros_are_not_counted() -> None:
    assert of(np.asarray([0.0, 0.0, 2.0])).counts.sum() == 1
    assert not of(np.zeros(5)).counts.any()


def test_extremes_include_zero_and_every_value() -> None:
    found = of(np.asarray([2.0, 3.0]))
    assert (found.low, found.high) == (0.0, 3.0)


def test_sampling_reaches_every_channel() -> None:
    channels = np.arange(64, dtype=np.float32)
    batch = np.broadcast_to(channels, (SAMPLE // 16, 64))  # four times the sample: a stride of 4 would miss three of four
    sample = Histogram.sampled(np.ascontiguousarray(batch))
    values, counts = np.unique(sample, return_counts=True)
    assert values.tolist() == channels.tolist()
    assert counts.max() < 1.01 * counts.min()
    assert SAMPLE // 2 < len(sample) <= SAMPLE


def test_a_small_batch_is_taken_whole() -> None:
    assert Histogram.sampled(NORMAL).tolist() == NORMAL.tolist()
