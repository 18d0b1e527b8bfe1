"""The table for people: what the paired test, the classes and the predictions say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress import SearchResult
from autocompress.accuracy.changes import Changes
from autocompress.accuracy.class_drops import ClassDrop
from autocompress.accuracy.flips import Flip
from autocompress.budget import Energy
from autocompress.reporting.report import result_dict, table
from autocompress.testing import make_records, make_result, make_study


@pytest.fixture
def result(tmp_path: Path) -> SearchResult:
    study = make_study(tmp_path)
    return make_result(study, make_records(study))


@pytest.mark.parametrize(
    ("drop", "p", "sentence"),
    [
        (0.002, 0.34, "the drop of 0.20 points is within chance (p = 0.34)"),
        (0.02, 0.0004, "the drop of 2.00 points is real (p < 0.001)"),
        (0.02, 0.0123, "the drop of 2.00 points is real (p = 0.012)"),
        (-0.01, 0.06, "the gain of 1.00 points is within chance (p = 0.06)"),
    ],
)
def test_drop_is_called_real_or_chance(result: SearchResult, drop: float, p: float, sentence: str) -> None:
    assert sentence in table(replace(result, drop=drop, drop_p=p)).splitlines()
    assert result_dict(replace(result, drop_p=p))["drop_p"] == p


def test_memory_and_load_time_stand_beside_the_size(result: SearchResult) -> None:
    base = replace(result.baseline.measurement, memory_bytes=8_000_000, load_ms=20.0, energy=Energy(0.5))
    best = replace(result.best.measurement, memory_bytes=5_000_000, load_ms=50.0, energy=Energy(0.2))
    assert best.size_bytes == 0.4 * (base.size_bytes or 0), "else memory would fall as the file does"
    found = replace(result, baseline=replace(result.baseline, measurement=base), best=replace(result.best, measurement=best))
    rows = [line.split() for line in table(found).splitlines()]
    assert ["memory", "8,000,000", "B", "5,000,000", "B", "1.60x", "less"] in rows
    assert ["load", "20.0", "ms", "50.0", "ms", "2.50x", "slower"] in rows
    assert ["energy", "0.5", "J", "0.2", "J", "2.50x", "less"] in rows
    assert "memory does not fall with the file" in table(found)
    smaller = replace(found, best=replace(found.best, measurement=replace(best, memory_bytes=3_300_000)))
    assert "memory does not fall" not in table(smaller)


def test_why_there_is_no_energy_is_told(result: SearchResult) -> None:
    best = replace(result.best.measurement, energy=Energy(None, "no energy counter: here"))
    found = replace(result, best=replace(result.best, measurement=best))
    written = result_dict(found)["best"]
    assert (written["energy_joules"], written["energy_reason"]) == (None, "no energy counter: here")
    assert "energy per inference was not measured: no energy counter: here" in table(found).splitlines()
    assert not any(line.split()[:1] == ["energy"] and "J" in line.split() for line in table(found).splitlines())


def test_nothing_is_said_about_what_is_not_there(result: SearchResult) -> None:
    text = table(replace(result, drop=0.0))
    assert not any(word in text for word in ("chance", "real", "class", "predicted"))
    written = result_dict(result)
    assert (written["worst_classes"], written["predicted"]) == ([], {})


def test_the_three_worst_classes_are_named(result: SearchResult) -> None:
    drops = [ClassDrop(n, 50 + n, 0.9, 0.9 - drop, drop) for n, drop in enumerate([0.02, 0.1, -0.1, 0.04, 0.06])]
    changed = replace(result, changes=Changes([Flip(7, 1, 1, 2, True, False)], drops))
    assert [row["label"] for row in result_dict(changed)["worst_classes"]] == [1, 4, 3]
    assert result_dict(changed)["worst_classes"][0] == vars(drops[1])
    line = next(line for line in table(changed).splitlines() if "class" in line)
    assert line == (
        "1 example changed their top choice; most was lost by class 1 -10.0 points of 51 examples, "
        "class 4 -6.0 points of 54 examples, class 3 -4.0 points of 53 examples"
    )


def test_predictions_stand_beside_what_was_measured(result: SearchResult) -> None:
    predicted = {"divergence": 0.0123, "size_ratio": 0.41, "latency_ratio": 0.382}
    measured = replace(result.best, measurement=replace(result.best.measurement, divergence=0.02))
    found = replace(result, best=measured, predicted=predicted)
    assert "predicted (measured): divergence 0.0123 (0.02), size_ratio 0.41 (0.4), latency_ratio 0.382 (0.4)" in table(found)
    assert result_dict(found)["predicted"] == predicted


def test_how_sure_the_latency_is(result: SearchResult) -> None:
    text = table(result).splitlines()
    assert "latency ratio 0.400, 95 % interval 0.396 to 0.404" in text
    assert "latencies that differ by less than 0.6% cannot be told apart on this machine" in text
    written = result_dict(result)
    assert written["self_check"] == {"ratio": 1.001, "ratio_ci": [0.996, 1.006], "resolution": pytest.approx(0.006)}
    assert written["environment"]["id"] == written["best"]["environment"] == "0123abcd"
    assert written["best"]["load"] == 0.5


def test_missed_deadlines_and_a_machine_that_wandered_are_told(result: SearchResult) -> None:
    figures = result.best.measurement
    assert figures.latency is not None
    latency = replace(figures.latency, percentile=95, percentile_ms=0.9, missed=0.0123, wander=0.08)
    found = replace(result, best=replace(result.best, measurement=replace(figures, latency=latency, latency_ms=0.9)))
    text = table(found)
    assert "latency ratio of percentile 95 0.400, 95 % interval 0.396 to 0.404; 1.2% of the calls miss the deadline" in text
    assert "the machine's speed wandered by 8% while latency was timed" in text
    assert "0.900 ms" in text
    written = result_dict(found)["best"]
    assert (written["latency_percentile"], written["deadline_missed"]) == (95, 0.0123)
