from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from autocompress.distance import output_divergence


def test_scores_of_classes_are_compared_as_probabilities() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 5, 7)).astype(np.float32)
    expected = [entropy(softmax(p), softmax(q)) for p, q in zip(theirs.astype(float), ours.astype(float), strict=True)]
    np.testing.assert_allclose(output_divergence(ours, theirs, class_scores=True), expected, rtol=1e-9)


def test_other_outputs_are_compared_by_their_error_in_units_of_the_signal() -> None:
    theirs = np.array([[3.0, 4.0], [0.0, 5.0]])
    ours = theirs + np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(output_divergence(ours, theirs, class_scores=False), [1.0 / 12.5, 0.0])


@pytest.mark.parametrize("class_scores", [True, False])
def test_equal_outputs_have_no_distance_also_when_they_are_huge_or_zero(class_scores: bool) -> None:
    for outputs in (np.full((3, 4), 1e6), np.zeros((3, 4)), np.eye(3, 4) * 1e4):
        assert (output_divergence(outputs, outputs, class_scores=class_scores) == 0).all()
