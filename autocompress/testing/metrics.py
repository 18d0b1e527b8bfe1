"""The contract of `Metric`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autocompress.components import (
    Metric,
)
from autocompress.testing.batches import Array, normal
from autocompress.testing.round_trip import check_settings


class MetricContract:
    """The promises of `Metric`.

    Examples are classes, values against values or maps of classes, the first that the metric takes. One that wants others
    overrides the fixtures `expected` and `perfect`.
    """

    @pytest.fixture
    def metric(self) -> Metric:
        """The component under test."""
        raise NotImplementedError("a subclass of MetricContract gives the fixture `metric`")

    @pytest.fixture
    def expected(self, metric: Metric) -> Array:
        """Targets, or the FP32 file's outputs, of some examples; axis 0 counts them."""
        return _examples(metric)[0]

    @pytest.fixture
    def perfect(self, metric: Metric, expected: Array) -> Array:
        """Outputs that deserve the highest value."""
        return _examples(metric)[1]

    @pytest.fixture
    def outputs(self, perfect: Array) -> Array:
        """Outputs of a poor model."""
        return normal(*perfect.shape, seed=1)

    def test_one_row_for_each_example(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Statistics are finite float64, shape (N,) or (N, k)."""
        statistics = metric.statistics(outputs, expected)
        assert statistics.dtype == np.float64
        assert statistics.ndim in {1, 2}
        assert len(statistics) == len(outputs)
        assert np.isfinite(statistics).all()

    def test_examples_do_not_influence_each_other(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """The statistics of a subset are the subset of the statistics; paired intervals and early stops rely on it."""
        whole = metric.statistics(outputs, expected)
        for chosen in (slice(0, 1), slice(3, 20), slice(None, None, -1)):
            np.testing.assert_allclose(metric.statistics(outputs[chosen], expected[chosen]), whole[chosen], rtol=1e-9)

    def test_value_is_a_finite_number(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Also for a single example, and in any order of the examples."""
        statistics = metric.statistics(outputs, expected)
        assert isinstance(metric.value(statistics), float)
        assert math.isfinite(metric.value(statistics[:1]))
        assert metric.value(statistics[::-1]) == pytest.approx(metric.value(statistics))

    def test_value_of_a_resample(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Also where some examples are drawn several times and others never, as a bootstrap does."""
        statistics = metric.statistics(outputs, expected)
        assert math.isfinite(metric.value(statistics[[0, 0, 0, -1]]))
        assert metric.value(np.concatenate([statistics, statistics])) == pytest.approx(metric.value(statistics))

    def test_shares_lie_between_0_and_1(self, metric: Metric, outputs: Array, perfect: Array, expected: Array) -> None:
        """What is shown in per cent is a share."""
        values = [metric.value(metric.statistics(found, expected)) for found in (outputs, perfect)]
        assert not metric.percent or all(0 <= value <= 1 for value in values)

    def test_larger_is_better(self, metric: Metric, outputs: Array, perfect: Array, expected: Array) -> None:
        """Perfect outputs beat poor ones."""
        best = metric.value(metric.statistics(perfect, expected))
        assert best > metric.value(metric.statistics(outputs, expected))

    def test_large_outputs_stay_finite(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Broken candidates give large numbers; they must score badly and not crash."""
        assert np.isfinite(metric.statistics(outputs * np.float32(1e30), expected)).all()

    def test_leaves_its_input_alone(self, metric: Metric, outputs: Array, expected: Array) -> None:
        """Outputs and targets are not written to, and asking twice gives the same."""
        outputs_before, expected_before = outputs.copy(), expected.copy()
        first = metric.statistics(outputs, expected)
        np.testing.assert_array_equal(first, metric.statistics(outputs, expected))
        np.testing.assert_array_equal(outputs, outputs_before)
        np.testing.assert_array_equal(expected, expected_before)

    def test_settings_survive_a_round_trip(self, metric: Metric) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(metric)


CLASSES = 10


def _examples(metric: Metric) -> tuple[Array, Array]:
    """What is expected and what is perfect, of the first kind of examples that the metric takes; classes when it takes none."""
    classes, values = np.arange(32) % CLASSES, normal(32, CLASSES)
    areas = np.arange(32 * 6 * 5).reshape(32, 6, 5) % CLASSES
    if metric.against_reference:
        return values, values.copy()
    kinds = ((classes, _scores(classes)), (values, values.copy()), (areas, np.moveaxis(_scores(areas), -1, 1)))
    return next((kind for kind in kinds if metric.class_scores or _takes(metric, *kind)), kinds[0])


def _scores(classes: Array) -> Array:
    """Scores that single out the given classes: one axis more, which is the last."""
    scores: Array = 10 * np.eye(CLASSES, dtype=np.float32)[classes]
    return scores


def _takes(metric: Metric, expected: Array, outputs: Array) -> bool:
    try:
        metric.statistics(outputs, expected)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):
        return False
    return True
