"""How long a browser takes to open the report of a long study: `python -m benchmarks.report_size`.

The page of a made-up study of 1,000 trials over 60 layers, written as at the end of a search and opened from disk in headless
Chromium, until every figure is drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autocompress import LayerPolicy, Policy, SearchResult, StudyContext, TrialRecord
from autocompress.reporting.report_html import write_report
from autocompress.searching.selection import pareto_front, ranked
from autocompress.testing import make_records, make_result, make_study
from benchmarks.workbench import publish

LAYERS = 60
WIDTHS = {"desktop": 1280, "phone": 390}
DRIVER = "/usr/bin/chromedriver"
DRAWN = """return [...document.querySelectorAll('.plotly-graph-div')].filter(one => one.querySelector('.main-svg')).length"""


def made_up(folder: Path, trials: int) -> tuple[StudyContext, SearchResult]:
    """A study whose trials trade accuracy for latency and size, one in five of which missed the budget early."""
    study = make_study(folder)
    rng, template = np.random.default_rng(0), make_records(study)[0]
    records = [_trial(study, template, number, *rng.uniform(0.0, 1.0, 3)) for number in range(trials)]
    tables = {
        "examples": 64,
        "leave_alone": {"rule": "", "layers": []},
        "layers": [_sensitivity(rng, at) for at in range(LAYERS)],
    }
    (study.folder / "sensitivity.json").write_text(json.dumps(tables))
    result = replace(
        make_result(study, records),
        best_trial=ranked(records, study.objective)[0].number,
        front=[record.number for record in pareto_front(records)],
        latency_predictions={r.number: 0.02 + (r.measurement.latency_ratio or 0.5) for r in records if r.state == "complete"},
        seconds=2.0 * sum(sum(record.seconds.values()) for record in records),
    )
    return study, result


def _trial(study: StudyContext, template: TrialRecord, number: int, size: float, time_: float, luck: float) -> TrialRecord:
    size, time_ = 0.1 + 0.9 * size, 0.2 + 0.8 * time_
    drop = 0.05 * (1 - size) * (1 - time_) + 0.01 * luck
    rows = tuple(replace(template.layers[0], layer=f"stage.{at}.conv", bits=8 if at % 3 else 4) for at in range(LAYERS))
    measured = replace(
        template.measurement,
        size_ratio=size,
        size_bytes=int(1000 * size),
        latency_ratio=time_,
        accuracy=0.9 - drop,
        accuracy_drop=drop,
    )
    early = number % 5 == 4
    figures = replace(measured, accuracy=None, accuracy_drop=None) if early else measured
    return replace(
        template,
        number=number,
        state="pruned" if early else "complete",
        gate="latency" if early else "done",
        policy=Policy({f"layer{number}": LayerPolicy("int8", 8)}),
        measurement=figures,
        violations=study.budget.violations(figures),
        layers=rows,
        seconds={"build": 0.2, "latency": 0.8, "accuracy": 0.4},
    )


def _sensitivity(rng: np.random.Generator, at: int) -> dict[str, Any]:
    labels = ["int8", "int4", *(f"{bits} sparse {share}%" for bits in ("int8", "int4") for share in (30, 50, 70))]
    options = [
        {"option": label, "divergence": 10 ** rng.uniform(-6, 0), "saved_bytes": 100, "saved_ms": 0.01} for label in labels
    ]
    return {"layer": f"stage.{at}.conv", "mildest": labels[0], "options": options}


@contextmanager
def browser(width: int) -> Iterator[Any]:
    """Headless Chromium with a window of so many pixels."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 640}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield driver
    finally:
        driver.quit()


def opening(page: Path, width: int) -> dict[str, float]:
    """Seconds from asking for the page until every figure is drawn, by the browser's own clock, and what is drawn."""
    with browser(width) as driver:
        driver.get("about:blank")
        driver.get(page.as_uri())
        figures = driver.execute_script("return document.querySelectorAll('.plotly-graph-div').length")
        while driver.execute_script(DRAWN) < figures:
            time.sleep(0.05)
        milliseconds = driver.execute_script("return performance.now()")
        loaded = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        wide = driver.execute_script("return document.documentElement.scrollWidth")
    return {"seconds": milliseconds / 1000, "load_seconds": loaded / 1000, "figures": figures, "page_pixels": wide}


def figures(trials: int, repeats: int) -> dict[str, Any]:
    """What writing and opening take."""
    with tempfile.TemporaryDirectory() as folder:
        study, result = made_up(Path(folder), trials)
        start = time.perf_counter()
        page = write_report(study, result)
        row: dict[str, Any] = {"trials": trials, "bytes": page.stat().st_size, "write_seconds": time.perf_counter() - start}
        for name, width in WIDTHS.items():
            found = [opening(page, width) for _ in range(repeats)]
            row[name] = {key: median(one[key] for one in found) for key in found[0]}
    return row


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    row = figures(arguments.trials, arguments.repeats)
    publish("report_size", row)
    sys.stdout.write(f"{json.dumps(row, indent=2)}\n")


if __name__ == "__main__":
    main()
