"""How two computations of the same outputs are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autocompress.accuracy.evaluation import check_outputs, snr_db
from autocompress.errors import CheckError

random = np.random.default_rng(0)


def test_ratio_of_known_noise() -> None:
    signal = random.standard_normal((100, 50))
    assert snr_db(signal, signal * 1.1) == pytest.approx(20.0)
    assert snr_db(signal, signal) == math.inf
    assert snr_db(np.zeros(4), np.zeros(4)) == math.inf  # a net whose last layer is zero
    assert snr_db(np.zeros(4), np.ones(4)) < -100


def test_the_top_choice_is_compared_for_classes_only() -> None:
    """Two scores that are nearly equal: noise that hardly counts turns half of the choices."""
    exact = np.stack([np.ones(200), np.full(200, 1.0)], axis=1) + 1e-4 * random.standard_normal((200, 2))
    fast = exact[:, ::-1].copy()
    check_outputs(fast, exact, class_scores=False)
    with pytest.raises(CheckError, match="agree in top-1"):
        check_outputs(fast, exact, class_scores=True)
    check_outputs(exact[:, :1], exact[:, :1], class_scores=True)  # one output has no choice


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_or_far_off_is_refused(broken: float) -> None:
    exact = random.standard_normal((10, 3))
    with pytest.raises(CheckError, match="NaN or infinity"):
        check_outputs(np.full((10, 3), broken), exact)
    with pytest.raises(CheckError, match=r"agree to .* dB only"):
        check_outputs(exact + random.standard_normal((10, 3)), exact)
