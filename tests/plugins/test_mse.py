from __future__ import annotations

import itertools

import numpy as np
import pytest
from autocompress_plugins.mse import Mse
from numpy.typing import NDArray

from autocompress import Observer
from autocompress.testing import ObserverContract

random = np.random.default_rng(0)
DATA = {
    "normal": random.standard_normal(4_000),
    "relu": np.maximum(random.standard_normal(4_000), 0),
    "laplace": random.laplace(size=4_000),
    "gelu_like": np.maximum(random.standard_normal(4_000), -0.15),
    "outliers": np.append(random.standard_normal(4_000), [60.0, -30.0]),
    "negative": -random.exponential(size=4_000),
}


class TestMse(ObserverContract):
    @pytest.fixture
    def observer(self) -> Observer:
        return Mse()


def observed(bits: int, *batches: NDArray[np.float64]) -> tuple[float, float]:
    observer = Mse()
    for batch in batches:
        observer.update(batch.astype(np.float32))
    return observer.range(bits)


def loss(values: NDArray[np.float64], low: float, high: float, bits: int) -> float:
    """Mean squared error of quantization onto a grid that covers the range and holds 0."""
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    codes = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
    return float(np.mean(((codes - zero) * scale - values) ** 2))


def brute_force(values: NDArray[np.float64], bits: int) -> float:
    """Least error over a grid of both ends."""
    shares = np.linspace(0.025, 1, 40)
    ends = itertools.product(min(values.min(), 0.0) * shares, max(values.max(), 0.0) * shares)
    return min(loss(values, low, high, bits) for low, high in ends if high > low)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("name", DATA)
def test_is_as_good_as_brute_force(name: str, bits: int) -> None:
    values = DATA[name]  # brute force may by luck put a grid point on a value that is frequent, hence the tenth
    assert loss(values, *observed(bits, values), bits) <= 1.1 * brute_force(values, bits)


def test_few_bits_clip_more() -> None:
    high = [observed(bits, DATA["laplace"])[1] for bits in (2, 4, 8)]
    assert high[0] < high[1] < high[2] <= DATA["laplace"].max()


def test_low_stays_at_zero_without_negative_values() -> None:
    assert observed(8, DATA["relu"])[0] == 0.0


def test_batches_that_make_the_histogram_grow() -> None:
    """The answer is that of the opposite order, up to the width of a bin."""
    batches = [DATA["normal"] * scale for scale in (0.01, 0.1, 1.0)]
    np.testing.assert_allclose(observed(4, *batches), observed(4, *batches[::-1]), rtol=0.05)


def test_more_bits_than_bins_clip_almost_nothing() -> None:
    values = DATA["laplace"]
    np.testing.assert_allclose(observed(16, values), (values.min(), values.max()), rtol=0.03)
