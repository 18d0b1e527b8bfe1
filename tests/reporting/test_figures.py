"""What the figures of a study show, against the records; both ways of drawing them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.record import SearchResult, StudyContext, TrialRecord
from autocompress.reporting.figure import Bars, Line, Points
from autocompress.reporting.figures import study_figures
from autocompress.testing import make_records, make_result, make_study

HOSTILE = "</script><img src=x onerror=alert(1)> $\\frac{1}{0}$"


@pytest.fixture
def study(tmp_path: Path) -> StudyContext:
    return make_study(tmp_path)


def records(study: StudyContext, count: int = 6) -> list[TrialRecord]:
    """Complete trials, each faster and less accurate than the one before, then those that end early."""
    complete, large, failed = make_records(study)
    found = []
    for number in range(count):
        ratio, drop = 0.9 - 0.1 * number, 0.01 * number
        figures = replace(complete.measurement, latency_ratio=ratio, size_ratio=ratio, accuracy=0.9 - drop, accuracy_drop=drop)
        row = replace(complete.layers[0], layer=HOSTILE, bits=8 - number, sparsity=0.1 * number)
        seconds = {"build": 1.0 + number, "accuracy": 2.0}
        found.append(replace(complete, number=number, measurement=figures, layers=(row,), seconds=seconds))
        found[-1] = replace(found[-1], violations=study.budget.violations(figures))
    return [*found, replace(large, number=count), replace(failed, number=count + 1)]


def answer(study: StudyContext) -> SearchResult:
    told = records(study)
    predictions = {record.number: 0.5 for record in told[:6]}
    result = make_result(study, told)
    return replace(result, best_trial=4, front=list(range(6)), latency_predictions=predictions, seconds=100.0)


def write_tables(folder: Path) -> None:
    options = [{"option": "int8", "divergence": 0.001}, {"option": "int4", "divergence": None}]
    layers = [{"layer": HOSTILE, "options": options}, {"layer": "head", "options": options[:1]}]
    content = {"examples": 64, "leave_alone": {"rule": "it costs", "layers": ["head"]}, "layers": layers}
    (folder / "sensitivity.json").write_text(json.dumps(content))


def test_front_shows_complete_trials_at_their_figures(study: StudyContext) -> None:
    result = answer(study)
    panel = study_figures(study, result)["pareto_front"].panels[0]
    marks = {mark.name: mark for mark in panel.marks if isinstance(mark, Points | Line)}
    by_name = {name: list(zip(mark.x, mark.y, strict=True)) for name, mark in marks.items()}
    figures = [(r.measurement.latency_ratio, r.measurement.accuracy, r.measurement.size_ratio) for r in result.records[:6]]
    assert by_name["trials"] == [(x, y) for x, y, size in figures if size <= 0.5]
    assert by_name["over the budget"] == [(x, y) for x, y, size in figures if size > 0.5]
    assert by_name["front"] == sorted((x, y) for x, y, _ in figures)
    assert by_name["winner"] == [figures[4][:2]]
    assert by_name["FP32"] == [(1.0, study.baseline.accuracy)]
    trials = marks["trials"]
    assert isinstance(trials, Points)
    assert list(trials.values) == [size for *_, size in figures if size <= 0.5]
    assert trials.texts[0].startswith("t0004 4.0b s40 0.50x accuracy 86.0%\n")


def test_layers_seconds_and_predictions_are_those_of_the_records(study: StudyContext) -> None:
    result = answer(study)
    found = study_figures(study, result)
    layers, times = found["best_layers"].panels[0].marks[0], found["seconds"].panels[0].marks[0]
    assert isinstance(layers, Bars)
    assert isinstance(times, Bars)
    assert (list(layers.labels), list(layers.lengths), list(layers.values)) == ([HOSTILE], [4.0], [0.4])
    assert dict(zip(times.labels, times.lengths, strict=True)) == {"build": 21.0, "accuracy": 12.0, "outside of trials": 67.0}
    line, points = found["latency_prediction"].panels[0].marks
    assert isinstance(line, Line)
    assert isinstance(points, Points)
    assert list(points.x) == [0.5] * 6
    assert points.y == [record.measurement.latency_ratio for record in result.records[:6]]
    assert "sensitivity" not in found


def test_a_study_without_trials_has_no_figures(study: StudyContext) -> None:
    result = make_result(study, [], "interrupted")
    assert study_figures(study, result) == {}


@pytest.mark.parametrize("name", ["pareto_front", "best_layers", "sensitivity", "latency_prediction", "seconds", "progress"])
def test_each_is_drawn_and_names_are_no_markup(study: StudyContext, tmp_path: Path, name: str) -> None:
    write_tables(study.folder)
    figure = study_figures(study, answer(study))[name]
    page = figure.html(plotly_js=False, page=False)
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script")
    picture = figure.png(tmp_path / "figure.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
