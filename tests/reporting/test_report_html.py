"""The page of a study: the terminal's figures, nothing from the network, and names that are no markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from autocompress.probing.findings import Case, Finding, Findings
from autocompress.record import SearchResult, Status, StudyContext
from autocompress.reporting.answer import EXPLAINED, answer
from autocompress.reporting.report import comparison, notes
from autocompress.reporting.report_html import report_page, write_report
from autocompress.testing import make_records, make_result, make_study
from benchmarks import report_size

HOSTILE = "<script>alert('layer')</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture
def study(tmp_path: Path) -> StudyContext:
    return make_study(tmp_path)


def of(study: StudyContext, status: Status = "feasible") -> SearchResult:
    return make_result(study, make_records(study), status)


def own(page: str) -> str:
    """The page without Plotly's script."""
    return re.sub(r"<script>/\*\*\s*\n?\* plotly.js.*?</script>", "", page, count=1, flags=re.DOTALL)


def text(page: str) -> str:
    """What is to be read."""
    plain = re.sub(r"<(script|style)\b.*?</\1>", " ", own(page), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", plain)).split())


@pytest.mark.parametrize("status", ["feasible", "infeasible"])
def test_page_says_what_the_terminal_says(study: StudyContext, status: Status) -> None:
    result = of(study, status)
    found = text(report_page(study, result))
    assert answer(result) in found
    assert EXPLAINED[status] in found
    for row in comparison(result):
        assert " ".join(row) in found
    for note in notes(result):
        assert note in found
    assert "1 stopped at size" in found
    assert "1 failed: CheckError: odd" in found


def test_nothing_is_loaded_and_the_script_is_there_once(study: StudyContext) -> None:
    page = report_page(study, of(study))
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(link|iframe)\b|<\w+[^>]*\ssrc=\"(?!data:)|@import|url\(", own(page))


def test_names_are_no_markup(study: StudyContext) -> None:
    hostile = replace(study, model=HOSTILE, device=HOSTILE, versions={"runtime": HOSTILE}, config={"a": HOSTILE})
    result = of(hostile)
    rows = tuple(replace(row, layer=HOSTILE, quantizer=HOSTILE, pruner=HOSTILE) for row in result.records[0].layers)
    records = [replace(record, layers=rows, reason=HOSTILE) for record in result.records]
    option = {"option": HOSTILE, "divergence": 0.5, "saved_bytes": 1, "saved_ms": 0.5}
    layer = {"layer": HOSTILE, "mildest": HOSTILE, "options": [option]}
    tables = {"examples": 1, "leave_alone": {"rule": HOSTILE, "layers": [HOSTILE]}, "layers": [layer]}
    (study.folder / "sensitivity.json").write_text(json.dumps(tables))
    page = own(report_page(hostile, replace(result, records=records, reasons=[HOSTILE])))
    assert "<script>alert" not in page
    assert not re.search(r"<img (?!alt=\"[^\"]*\" src=\"data:)", page)
    assert HOSTILE in unescape(page)


def test_why_stands_beside_each_layer(study: StudyContext) -> None:
    options = [{"option": "int8", "divergence": 0.002, "saved_bytes": 864, "saved_ms": 0.25}]
    layer = {"layer": "conv", "mildest": "int8", "options": options}
    tables = {"examples": 8, "leave_alone": {"rule": "", "layers": []}, "layers": [layer]}
    (study.folder / "sensitivity.json").write_text(json.dumps(tables))
    found = text(report_page(study, of(study)))
    assert "INT8 by int8" in found
    assert "sensitivity 1 of 1; alone this changes the outputs by 2.0e-03 and saves 864 bytes, 0.250 ms" in found


@pytest.mark.parametrize(("objective", "tells"), [("latency", True), ("size", False)])
def test_what_gains_nothing_for_the_goal_is_told(study: StudyContext, objective: str, tells: bool) -> None:
    smaller = Finding("layer", "conv2d", "float", "int8", 8, (Case(1.0, 0.99, 1.01, 0.3),))
    slower = Finding("op", "Sigmoid", "integer", "", 0, (Case(1.5, 1.4, 1.6, 1.0),))
    Findings("key", "a processor", "runtime", (smaller, slower)).save(study.folder / "probe.json")
    found = text(report_page(replace(study, objective=objective, budget=replace(study.budget, size_ratio=None)), of(study)))
    assert ("smaller, but not faster : INT8 conv2d, in float" in found) is tells
    assert "slower than float here : Sigmoid in integers" in found


def test_commands_are_those_that_were_typed(study: StudyContext) -> None:
    assert 'autocompress.search(task, Budget(size_ratio=0.5), objective="accuracy", trials=3)' in text(
        report_page(study, of(study))
    )
    (study.folder / ".hydra").mkdir()
    (study.folder / ".hydra" / "overrides.yaml").write_text("- +experiment=digits\n- pruner=[sparse,importance]\n")
    found = text(report_page(study, of(study)))
    assert "autocompress search +experiment=digits 'pruner=[sparse,importance]'" in found
    assert "'pruner=[sparse,importance]' policy=best/policy.yaml" in found


def test_a_study_without_trials_has_a_page(study: StudyContext) -> None:
    page = report_page(study, replace(make_result(study, [], "interrupted"), best_trial=None))
    assert "Interrupted before anything within the budget was found." in text(page)
    assert len(page) < 100_000, "no figures, no script"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_every_figure_within_the_window(tmp_path: Path, width: int) -> None:
    pytest.importorskip("selenium")
    if not Path(report_size.DRIVER).exists():
        pytest.skip("needs Debian's chromium-driver")
    page = write_report(*report_size.made_up(tmp_path, trials=30))
    found = report_size.opening(page, width)
    assert found["figures"] == 6
    assert found["page_pixels"] <= width
