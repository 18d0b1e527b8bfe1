"""What options surely cost."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.prediction.sure_drop import sure_drops


def test_comparable_options_are_averaged_and_the_rest_keep_their_order() -> None:
    """Against the min-max formula of isotonic regression (Barlow et al. 1972, theorem 1.4)."""
    random = np.random.default_rng(0)
    divergences = random.permutation(np.geomspace(1e-5, 1, 40))
    drops = np.round(0.2 * np.sqrt(divergences) + random.normal(scale=0.02, size=40), 3)
    ordered = drops[np.argsort(divergences)]
    means = [
        max(min(ordered[start : stop + 1].mean() for stop in range(place, 40)) for start in range(place + 1))
        for place in range(40)
    ]
    found = sure_drops(divergences, drops, resolution=0.0)[np.argsort(divergences)]
    np.testing.assert_allclose(found, np.maximum(means, 0.0), atol=1e-12)
    assert 1 < len(np.unique(found)) < 40


def test_doubt_is_that_of_the_examples_that_were_lost() -> None:
    falling = np.linspace(0.04, 0.0, 20)  # all 20 are pooled: 1,280 examples, of which 2 % were lost
    found = sure_drops(np.arange(20.0), falling, resolution=1 / 64)
    assert found == pytest.approx(np.full(20, 0.02 - 2 * np.sqrt(0.02 * 1280) / 1280))
    assert sure_drops(np.array([1.0]), np.array([1 / 64]), 1 / 64).tolist() == [0.0]


def test_what_does_not_run_costs_infinitely_much_and_gains_cost_nothing() -> None:
    found = sure_drops(np.array([np.inf, 0.1, 0.2]), np.array([np.inf, -0.1, -0.05]), 0.0)
    assert found.tolist() == [np.inf, 0.0, 0.0]
    assert sure_drops(np.array([np.inf]), np.array([np.inf]), 0.0).tolist() == [np.inf]
