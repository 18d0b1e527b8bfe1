"""`autocompress report FOLDER`: writes report.html, one page that needs no network, of a search that has ended or not."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autocompress.choices.worthwhile import Uses
from autocompress.guarding.whole_file import write_whole
from autocompress.probing.findings import Findings
from autocompress.record import SearchResult, StudyContext, TrialRecord
from autocompress.reporting.answer import EXPLAINED, answer
from autocompress.reporting.figure import Figure
from autocompress.reporting.figures import SENSITIVITY, study_figures
from autocompress.reporting.layer_story import layer_stories, other_decisions
from autocompress.reporting.report import comparison, intervals, notes, report_set
from autocompress.reporting.trial_names import trial_name
from autocompress.reporting.unfinished import unfinished
from autocompress.searching.selection import pareto_front
from autocompress.studies.study_file import last_study

REPORT = "report.html"
PROBE = "probe.json"
TEMPLATE = "report.html.jinja"
MOST_ROWS = 30
"""Trials of the front in the table, and different reasons of failures."""

SMALLER = "size only here"

PAYS = ("time", "time and size")
"""Verdicts of the probe on what is worth it in any case."""


def main(arguments: Sequence[str]) -> int:
    """Write the report of the study in a folder."""
    parser = argparse.ArgumentParser(prog="autocompress report", description="Write report.html from what lies in a folder.")
    parser.add_argument("folder", type=Path, help="output folder of a search; one that was interrupted will do")
    saved = last_study(parser.parse_args(arguments).folder.resolve())
    path = write_report(saved.context, saved.result or unfinished(saved.context, saved.records))
    sys.stdout.write(f"report: {path}\n")
    return 0


def write_report(study: StudyContext, result: SearchResult) -> Path:
    """Write report.html into the study's folder, whole or not at all."""
    return write_whole(study.folder / REPORT, report_page(study, result))


def report_page(study: StudyContext, result: SearchResult) -> str:
    """The page."""
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(TEMPLATE)
    tables = _json(study.folder / SENSITIVITY)
    front = pareto_front(result.records)
    script = get_plotlyjs()
    plotly = Markup(script)  # nosec B704  # an installed package's own
    return template.render(
        study=study,
        result=result,
        answer=answer(result),
        explained=EXPLAINED[result.status],
        rows=comparison(result),
        intervals=intervals(result),
        examples=f"{result.best.measurement.images} {report_set(result)} examples",
        notes=notes(result),
        figures={name: _drawn(figure) for name, figure in study_figures(study, result).items()},
        plotly=plotly,
        layers=layer_stories(result, tables),
        decisions=list(other_decisions(result)),
        unpaid=_unpaid(study),
        ends=list(_ends(result.records)),
        front=[_trial(record, study) for record in sorted(front, key=_latency)[:MOST_ROWS]],
        front_size=len(front),
        commands=_commands(study),
        config=json.dumps(study.config, indent=2, default=str) if study.config else "",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _drawn(figure: Figure) -> dict[str, Any]:
    """For the screen, and as a picture for paper and for browsers without scripts."""
    with tempfile.TemporaryDirectory() as folder:
        picture = figure.png(Path(folder) / "figure.png").read_bytes()
    html = figure.html(plotly_js=False, page=False)
    drawn = Markup(html)  # nosec B704  # every text in it is escaped
    return {
        "title": figure.title,
        "explanation": figure.explanation,
        "html": drawn,
        "picture": base64.b64encode(picture).decode(),
    }


def _latency(record: TrialRecord) -> float:
    return record.measurement.latency_ratio or 0.0


def _trial(record: TrialRecord, study: StudyContext) -> dict[str, str]:
    figures, quality = record.measurement, study.quality
    return {
        "name": trial_name(record, quality),
        study.metric: "" if figures.accuracy is None else quality.value(figures.accuracy),
        "latency": "" if figures.latency_ratio is None else f"{figures.latency_ratio:.3f} of FP32's",
        "size": "" if figures.size_bytes is None else f"{figures.size_bytes:,} bytes",
        "budget": "fits" if record.feasible else f"exceeded by {record.violation:.0%}",
    }


def _unpaid(study: StudyContext) -> Mapping[str, list[str]]:
    """Verdict of the probe to what gains nothing that the goal asks for on this target."""
    path, uses = study.folder / PROBE, Uses.of(study.objective, study.budget)
    found, unpaid = Findings.load(path, str(_json(path).get("key"))), dict[str, list[str]]()
    for row in found.rows if found else ():
        verdict = found.verdict(row) if found else ""
        if verdict not in PAYS and not (uses.size and verdict == SMALLER):
            words = "smaller, but not faster" if verdict == SMALLER else verdict
            unpaid.setdefault(words, []).append(row.label)
    return unpaid


def _ends(records: Sequence[TrialRecord]) -> Iterator[str]:
    """How many trials ended where, the failed ones with their reasons."""
    early = Counter(record.gate for record in records if record.state == "pruned" and record.is_measured)
    yield f"{len(records)} trials, {sum(record.state == 'complete' for record in records)} of them measured completely"
    for gate, count in early.items():
        yield f"{count} stopped at {gate}: they missed the budget there, or could not become the best"
    failed = Counter(record.reason for record in records if record.state == "failed")
    for reason, count in failed.most_common(MOST_ROWS):
        yield f"{count} failed: {reason}"


def _commands(study: StudyContext) -> Mapping[str, str]:
    """What to type, by what it does; paths are those from the study's folder."""
    told = _overrides(study.folder)
    run = {"Run the delivered file on an array of inputs": "python best/run.py input.npy"}
    look = {
        "Write this page again": "autocompress report .",
        "Look at all trials": "optuna-dashboard sqlite:///study.db",
    }
    if told is None:
        return {**run, "Search again or further, from Python": _call(study), **look}
    words = " ".join(shlex.quote(word) for word in told)
    return {
        **run,
        "Search again or further, where it was started": f"autocompress search {words}",
        "Build the same file from its policy": f"autocompress apply {words} policy=best/policy.yaml",
        "Measure the file again": f"autocompress evaluate {words} artifact=best/model.onnx",
        **look,
    }


def _overrides(folder: Path) -> list[str] | None:
    """What the search in a folder was told on the command line; None: it was started from Python."""
    path = folder / ".hydra" / "overrides.yaml"
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return [str(word) for word in words] if isinstance(words, list) else None


def _call(study: StudyContext) -> str:
    trials = study.config.get("search", {}).get("trials", "...")
    limits = ", ".join(f"{name}={limit:g}" for name, limit in study.budget.limits().items())
    return f'autocompress.search(task, Budget({limits}), objective="{study.objective}", trials={trials})'
