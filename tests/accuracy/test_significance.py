"""The paired test against sums of binomial terms, and against how often it is wrong when nothing is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.cosine import Cosine
from autocompress_plugins.f1 import F1

from autocompress.accuracy.significance import paired_p


def pair(lost: int, won: int, examples: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """FP32 alone is right on `lost` examples, the file alone on `won`, both on the rest."""
    reference, candidate = np.ones(examples), np.ones(examples)
    candidate[:lost], reference[lost : lost + won] = 0, 0
    return reference, candidate


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (5, 1), (12, 4), (30, 10), (0, 8), (7, 7)])
def test_share_is_tested_with_the_binomial_distribution(lost: int, won: int) -> None:
    discordant = lost + won
    terms = [math.comb(discordant, count) / 2**discordant for count in range(discordant + 1)]
    expected = min(1.0, 2 * sum(terms[: min(lost, won) + 1]))
    assert paired_p(Accuracy(), *pair(lost, won)) == pytest.approx(expected)


def test_equal_files_differ_by_nothing() -> None:
    assert paired_p(Accuracy(), *pair(0, 0)) == 1
    figures = np.random.default_rng(0).random(100)
    assert paired_p(Cosine(), figures, figures.copy()) == 1


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.1, 0.2])
def test_other_means_are_tested_as_by_the_t_test(shift: float) -> None:
    random = np.random.default_rng(3)
    reference = random.standard_normal(400)
    candidate = reference - shift + 0.8 * random.standard_normal(400)
    expected = scipy.stats.ttest_rel(reference, candidate).pvalue
    assert paired_p(Cosine(), reference, candidate, resamples=4000) == pytest.approx(expected, abs=0.03)


def test_a_metric_that_is_no_mean_is_not_tested_as_a_share() -> None:
    """F1 of two classes has statistics that are 0 or 1, a class each."""
    random = np.random.default_rng(4)
    true = random.integers(2, size=300)
    good, bad = (
        np.stack([np.where(random.random(300) < wrong, 1 - true, true), true], 1).astype(float) for wrong in (0.05, 0.4)
    )
    assert paired_p(F1(), good, bad) == pytest.approx(2 / 1001), "no draw is on the other side"


@dataclass
class Doubled(Accuracy):
    """Twice the share: not the mean any more."""

    name = "doubled"

    def value(self, statistics: np.ndarray) -> float:
        return 2 * float(statistics.mean())


def test_bootstrap_agrees_with_the_exact_test_about_the_order_of_p() -> None:
    for lost, won in [(12, 4), (10, 9)]:
        exact, drawn = (paired_p(metric, *pair(lost, won), resamples=4000) for metric in (Accuracy(), Doubled()))
        assert drawn == pytest.approx(exact, rel=0.6)
        assert drawn != exact


def test_equally_good_files_are_seldom_told_apart() -> None:
    """At the level of 5 %: 300 pairs of files that are right as often, an exact test errs in at most 15 of them and luck."""
    random = np.random.default_rng(5)
    wrong = sum(paired_p(Accuracy(), *(random.random((2, 300)) < 0.8).astype(float)) < 0.05 for _ in range(300))
    assert wrong <= 26
