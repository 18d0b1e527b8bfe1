from __future__ import annotations

import numpy as np
import pytest

from autocompress.accuracy.distance import output_divergence


def test_what_changes_no_probability_is_no_distance_between_scores() -> None:
    random = np.random.default_rng(0)
    theirs = random.normal(size=(5, 7))
    shifted = theirs + random.normal(size=(5, 1))
    np.testing.assert_allclose(output_divergence(shifted, theirs, class_scores=True), 0.0, atol=1e-25)
    assert (output_divergence(shifted, theirs, class_scores=False) > 0.01).any()


def test_scores_are_compared_in_units_of_what_tells_classes_apart() -> None:
    """By the variance over the classes, which numpy knows by itself."""
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 5, 7))
    expected = (ours - theirs).var(axis=1) / theirs.var(axis=1).mean()
    np.testing.assert_allclose(output_divergence(ours + 9.0, theirs, class_scores=True), expected, rtol=1e-9)


def test_other_outputs_are_compared_by_their_error_in_units_of_the_signal() -> None:
    theirs = np.array([[3.0, 4.0], [0.0, 5.0]])
    ours = theirs + np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(output_divergence(ours, theirs, class_scores=False), [1.0 / 12.5, 0.0])


@pytest.mark.parametrize("class_scores", [True, False])
def test_equal_outputs_have_no_distance_also_when_they_are_huge_or_zero(class_scores: bool) -> None:
    for outputs in (np.full((3, 4), 1e6), np.zeros((3, 4)), np.eye(3, 4) * 1e4):
        assert (output_divergence(outputs, outputs, class_scores=class_scores) == 0).all()
