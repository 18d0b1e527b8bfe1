"""Limits in the words of the measurement, and how far a measurement is from them."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest

from autocompress import Budget, Latency, Measurement
from autocompress.budget import Energy, Footprint
from autocompress.config import compose_settings
from autocompress.errors import BudgetError
from autocompress.registry import load_registry

LATENCY = Latency(
    median_ms=2.0, p95_ms=2.5, reference_median_ms=4.0, ratio=0.5, ratio_low=0.48, ratio_high=0.53, rounds=40, device="cpu"
)
MEASURED = Measurement(
    size_bytes=300,
    size_ratio=0.3,
    latency_ms=2.0,
    latency_ratio=0.5,
    accuracy=0.9,
    accuracy_drop=0.02,
    images=100,
    latency=LATENCY,
    memory_bytes=4000,
    load_ms=20.0,
    footprint=Footprint(4000, 50_000, 20.0, 15.0, 3.0),
    energy=Energy(0.25),
)
LIMITS = [field.name for field in fields(Budget) if field.name != "latency_percentile"]


def test_every_limit_is_a_figure_of_a_measurement() -> None:
    assert set(LIMITS) <= {field.name for field in fields(Measurement)}


def test_limits_are_those_that_are_set() -> None:
    assert Budget().limits() == {}
    assert Budget(size_ratio=0.3, accuracy_drop=0.0).limits() == {"size_ratio": 0.3, "accuracy_drop": 0.0}


@pytest.mark.parametrize(
    ("name", "limit", "excess"),
    [
        ("size_bytes", 200, 0.5),
        ("size_bytes", 300, 0.0),
        ("size_bytes", 600, -0.5),
        ("size_ratio", 0.2, 0.5),
        ("latency_ms", 1.0, 1.0),
        ("latency_ratio", 0.4, 0.25),
        ("memory_bytes", 2000, 1.0),
        ("load_ms", 25.0, -0.2),
        ("accuracy_drop", 0.04, -0.5),
        ("accuracy_drop", 0.016, 0.25),
        ("accuracy_drop", 0.005, 1.5),  # in units of one point, because the limit is less than that
        ("accuracy_drop", 0.0, 2.0),
    ],
)
def test_violation_is_the_excess_over_the_limit(name: str, limit: float, excess: float) -> None:
    assert Budget(**{name: limit}).violations(MEASURED) == {name: pytest.approx(excess)}


@pytest.mark.parametrize("name", LIMITS)
def test_what_was_not_measured_violates_nothing(name: str) -> None:
    missing = replace(MEASURED, **{name: None})  # type: ignore[arg-type]
    assert Budget(**{name: 0.001}).violations(missing) == {name: 0.0}
    assert Budget(**{name: 0.001}).violations(MEASURED)[name] > 0
    assert (Budget(**{name: 1.0}).unmeasured(missing), Budget(**{name: 1.0}).unmeasured(MEASURED)) == ([name], [])


def test_a_measurement_that_is_none_is_not_read() -> None:
    for odd in ({"size_bytes": "300"}, {"latency": {"ratio": 0.5}}, {"unknown": 1}, [], None):
        with pytest.raises(ValueError, match="expected"):
            Measurement.from_dict(odd)  # type: ignore[arg-type]


def test_a_file_that_gains_accuracy_is_within_a_drop_of_zero() -> None:
    assert Budget(accuracy_drop=0.0).violations(replace(MEASURED, accuracy_drop=-0.01)) == {"accuracy_drop": pytest.approx(-1)}


@pytest.mark.parametrize("limit", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in LIMITS if name != "accuracy_drop"])
def test_limits_that_nothing_can_meet_are_refused(name: str, limit: float) -> None:
    with pytest.raises(BudgetError, match=rf"budget\.{name}={limit}: expected a number above zero"):
        Budget(**{name: limit})


@pytest.mark.parametrize(
    "limit", ["0.5", [0.5], {}, True, 10**400], ids=["text", "list", "mapping", "truth value", "too large"]
)
@pytest.mark.parametrize("name", [*LIMITS, "latency_percentile"])
def test_what_is_no_number_is_refused(name: str, limit: object) -> None:
    with pytest.raises(BudgetError, match=rf"budget\.{name}="):
        Budget(**{name: limit})  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-0.001, math.nan, math.inf])
def test_drops_that_mean_nothing_are_refused(limit: float) -> None:
    with pytest.raises(BudgetError, match=r"budget\.accuracy_drop="):
        Budget(accuracy_drop=limit)


@pytest.mark.parametrize(("metric", "refused"), [("accuracy", True), ("squared_error", False)])
def test_a_drop_in_points_is_refused_with_the_unit(metric: str, refused: bool) -> None:
    overrides = [f"metric={metric}", "budget.accuracy_drop=1.5"]
    if refused:
        with pytest.raises(BudgetError, match=r"accuracy_drop=1\.5: expected a fraction below 1 .* \(0\.01 is one point\)"):
            compose_settings(overrides, load_registry())
    else:
        assert compose_settings(overrides, load_registry()).goal.budget.accuracy_drop == 1.5


@pytest.mark.parametrize(
    "measured",
    [MEASURED, replace(MEASURED, latency=None, energy=Energy(None, "no counter")), Measurement(), Measurement(size_bytes=5)],
)
def test_measurement_survives_json(measured: Measurement) -> None:
    assert Measurement.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


@pytest.mark.parametrize("percentile", [0, 49.9, 100, math.nan])
def test_percentiles_that_no_limit_is_meant_for_are_refused(percentile: float) -> None:
    with pytest.raises(BudgetError, match=r"budget\.latency_percentile=.*: expected 50 \(median\) or more, below 100"):
        Budget(latency_percentile=percentile)


def test_a_percentile_is_no_limit() -> None:
    assert Budget(latency_percentile=95).limits() == {}
    assert Budget(latency_percentile=95).violations(MEASURED) == {}


def test_latencies_for_sure_are_the_upper_ends_of_their_intervals() -> None:
    sure = MEASURED.at_most
    assert (sure.latency_ratio, sure.latency_ms) == (0.53, pytest.approx(2.0 * 0.53 / 0.5))
    assert replace(sure, latency_ratio=0.5, latency_ms=2.0) == MEASURED
    slowest = replace(MEASURED, latency=replace(LATENCY, percentile=95, percentile_ms=2.5))
    assert slowest.at_most.latency_ms == pytest.approx(2.5 * 0.53 / 0.5)
    assert Measurement(size_bytes=5).at_most == Measurement(size_bytes=5)


def test_resolution_is_the_end_of_the_interval_that_is_further_from_one() -> None:
    check = replace(LATENCY, ratio=1.002, ratio_low=0.997, ratio_high=1.007)
    assert check.resolution == pytest.approx(0.007)
    assert replace(check, ratio_low=0.98).resolution == pytest.approx(0.02)


def test_a_machine_that_wandered_is_warned_of() -> None:
    assert LATENCY.warnings == ()
    assert replace(LATENCY, wander=0.07).warnings == ("the machine's speed wandered by 7% while latency was timed",)


def test_figures_that_are_left_out_say_that_nothing_was_measured() -> None:
    """Those of a latency: one opening, and the median of what was timed."""
    assert (Measurement().images, LATENCY.openings, LATENCY.percentile) == (0, 1, 50.0)


def test_a_footprint_gives_the_figures_that_limits_are_for() -> None:
    footprint = Footprint(4000, 50_000, 20.0, 15.0, 3.0)
    assert Measurement(**footprint.figures) == Measurement(memory_bytes=4000, load_ms=20.0, footprint=footprint)
