"""The race against its formula, and against how often it errs on files that are as good as their rival."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.cosine import Cosine
from numpy.typing import NDArray

from autocompress.accuracy import racing
from autocompress.accuracy.racing import ERROR, Rival, find_defeat

EXAMPLES = 800
Figures = NDArray[np.float64]


def files(lost: int, won: int, seed: int = 0) -> tuple[Figures, Figures]:
    """A rival and a candidate: the first alone is right on `lost` of 800 examples, the second alone on `won`."""
    rival, candidate = np.ones(EXAMPLES), np.ones(EXAMPLES)
    candidate[:lost], rival[lost : lost + won] = 0, 0
    order = np.random.default_rng(seed).permutation(EXAMPLES)
    return rival[order], candidate[order]


@pytest.mark.parametrize(("count", "looks", "rivals"), [(100, 1, 1), (100, 3, 2), (400, 3, 1), (700, 3, 1)])
def test_margin_at_which_a_file_is_dropped(count: int, looks: int, rivals: int) -> None:
    rival, candidate = files(lost=160, won=40)
    difference = (rival - candidate)[:count]
    error = float(difference.std()) / math.sqrt(count) * math.sqrt((EXAMPLES - count) / EXAMPLES)
    z = scipy.stats.norm.isf(0.001 / (looks * rivals))
    limit = float(difference.mean()) - z * error
    for factor, dropped in ((1 - 0.15, True), (1 + 0.15, False)):
        margin = float(difference.mean()) - factor**-1 * z * error if dropped else limit + 0.15 * z * error
        others = [Rival("other", np.zeros(EXAMPLES), 0.0)] * (rivals - 1)
        found = find_defeat(Accuracy(), candidate[:count], [*others, Rival("x", rival, margin)], looks)
        assert (found is not None) == dropped


def test_defeat_says_by_whom_and_how_far() -> None:
    rival, candidate = files(lost=200, won=0)
    easy = Rival("FP32", rival, 0.5)
    found = find_defeat(Accuracy(), candidate[:200], [easy, Rival("trial 7", rival, 0.05)], looks=2)
    assert found is not None
    assert (found.rival.name, found.examples) == ("trial 7", 200)
    assert found.behind == (rival - candidate)[:200].mean()
    assert str(found) == f"{found.behind:.4f} behind trial 7 on 200 examples, 0.0500 is allowed"


def test_without_rivals_nobody_is_dropped() -> None:
    assert find_defeat(Accuracy(), np.zeros(10), [], looks=3) is None


def dropped(rival: Figures, candidate: Figures, margin: float, metric: Any, orders: int) -> int:
    """How many of many random orders drop the candidate at one of three looks."""
    count = 0
    for seed in range(orders):
        order = np.random.default_rng(seed).permutation(EXAMPLES)
        rivals = [Rival("rival", rival[order], margin)]
        count += any(find_defeat(metric, candidate[order][:stop], rivals, looks=3) is not None for stop in (100, 200, 400))
    return count


@pytest.mark.parametrize(("lost", "won", "margin"), [(20, 20, 0.0), (120, 120, 0.0), (56, 40, 0.02), (8, 0, 0.01)])
def test_a_file_that_keeps_the_margin_on_the_whole_set_is_not_dropped(lost: int, won: int, margin: float) -> None:
    """Exactly on the margin, the hardest case; 100 orders at one in a thousand."""
    assert dropped(*files(lost, won), margin, Accuracy(), orders=100) <= 1


def test_the_bound_is_that_of_all_looks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a bound of 30 % some are dropped: fewer than 30 %, as the looks share examples."""
    monkeypatch.setattr(racing, "ERROR", 0.3)
    found = dropped(*files(120, 120), 0.0, Accuracy(), orders=200)
    assert 10 <= found <= 60 + 3 * math.sqrt(200 * 0.3 * 0.7)
    assert ERROR == 0.001


def test_a_file_far_behind_is_dropped_at_once() -> None:
    assert dropped(*files(320, 0), 0.0, Accuracy(), orders=20) == 20


def test_figures_that_are_no_shares_are_raced_alike() -> None:
    random = np.random.default_rng(1)
    rival = random.random(EXAMPLES)
    noisy = rival + 0.1 * random.standard_normal(EXAMPLES)
    equal = noisy - (noisy - rival).mean()
    assert dropped(rival, equal, 0.0, Cosine(), orders=30) == 0
    assert dropped(rival, equal - 0.1, 0.0, Cosine(), orders=30) == 30
    assert dropped(rival, equal - 0.1, 0.11, Cosine(), orders=30) == 0
