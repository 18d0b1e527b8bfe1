"""What MLflow's log costs a search, and how soon a long study is on the screen.

`python -m benchmarks.tracking cost --trials 200`: seconds that the tracker takes, as a share of the search's wall time, on the
embedded default with the default settings, but for a sampler that does not end the search when nothing is left to gain.
With `--folder` it goes on where it stopped, and the rows add up.
`python -m benchmarks.tracking table --trials 1000`: from the address to the first row of MLflow's table in Chromium, over a
study whose records are made up and went through the tracker.
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
from unittest import mock

import numpy as np
from autocompress_plugins.mlflow_tracker import MlflowTracker
from mlflow import MlflowClient

from autocompress import StudyContext, TrialRecord
from autocompress.cli import main as command_line
from autocompress.reporting.notify import Notifier
from autocompress.testing import make_records, make_result, make_study
from benchmarks.browser import browser, element, mlflow_ui
from benchmarks.workbench import publish

LAYERS = 60
OPENINGS = 5


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("what", choices=["cost", "table"])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        found = cost(arguments.trials or 200, folder) if arguments.what == "cost" else table(arguments.trials or 1000, folder)
    publish(f"tracking_{arguments.what}", found)
    print(json.dumps(found, indent=2))


def cost(trials: int, folder: Path) -> dict[str, Any]:
    """Search until the study has so many trials; what earlier runs on the folder took is added."""
    path, start = folder / "cost.json", time.perf_counter()
    with _timed_hooks() as hooks, mock.patch.object(sys, "argv", list(sys.argv)):  # the command line changes it
        search = [
            "search",
            "+experiment=digits",
            "sampler=random",
            f"search.trials={trials}",
            f"hydra.run.dir={folder / 'study'}",
        ]
        try:
            command_line(search)
        except SystemExit as ended:
            assert not ended.code, f"{' '.join(search)} ended with {ended.code}"
    row = {"trials": trials, "wall_seconds": time.perf_counter() - start, **{name: sum(took) for name, took in hooks.items()}}
    rows = [*(json.loads(path.read_text()) if path.exists() else []), row]
    path.write_text(json.dumps(rows))
    wall, tracking = sum(one["wall_seconds"] for one in rows), sum(one.get(name, 0.0) for one in rows for name in hooks)
    a_trial = median(hooks["autocompress_trial_finished"])
    return {"runs": rows, "wall_seconds": wall, "seconds": tracking, "share": tracking / wall, "seconds_of_a_trial": a_trial}


@contextmanager
def _timed_hooks() -> Iterator[dict[str, list[float]]]:
    """Seconds of each call that tells the trackers something, by hook."""
    took: dict[str, list[float]] = {}
    call = Notifier.__call__

    def timed(self: Notifier, hook: str, **arguments: Any) -> list[Any]:
        start = time.perf_counter()
        answers = call(self, hook, **arguments)
        took.setdefault(hook, []).append(time.perf_counter() - start)
        return answers

    with mock.patch.object(Notifier, "__call__", timed):
        yield took


def table(trials: int, folder: Path) -> dict[str, Any]:
    """Make the store, unless the folder has one; then open its table some times, each in a browser that never was there."""
    database = folder / "mlflow.db"
    if not database.exists():
        log_study(trials, folder)
    client = MlflowClient(f"sqlite:///{database}")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    with mlflow_ui(database) as address:
        page = f"{address}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=autocompress"
        seconds = [_seconds_to_first_row(page) for _ in range(OPENINGS)]
    return {"trials": len(_runs(client, experiment.experiment_id)), "seconds": median(seconds), "each": seconds}


def _runs(client: MlflowClient, experiment_id: str) -> list[str]:
    """Ids of the runs of trials."""
    found = client.search_runs([experiment_id], max_results=50_000)
    return [run.info.run_id for run in found if run.data.tags.get("autocompress.trial", "").isdigit()]


def _seconds_to_first_row(page: str) -> float:
    with browser() as driver:
        start = time.perf_counter()
        driver.get(page)
        element(driver, FIRST_ROW)
        return time.perf_counter() - start


FIRST_ROW = "//*[@role='row']//a[contains(@href, '/runs/')]"


def log_study(trials: int, folder: Path) -> None:
    """A study of made-up records in `folder/mlflow.db`, told to the tracker as by a search."""
    study = make_study(folder)
    tracker = MlflowTracker(root=str(folder))
    tracker.autocompress_search_started(study, [])
    records = [made_up(study, number) for number in range(trials)]
    for record in records:
        tracker.autocompress_trial_finished(record)
    tracker.autocompress_search_finished(make_result(study, records))


def made_up(study: StudyContext, number: int) -> TrialRecord:
    """As large as a real one, with figures that get better slowly."""
    rng = np.random.default_rng(number)
    complete, pruned, failed = make_records(study)
    template = failed if number % 50 == 49 else pruned if number % 10 == 9 else complete
    layers = tuple(replace(template.layers[0], layer=f"layer{index}") for index in range(LAYERS))
    figures, accuracy = template.measurement, 0.9 - 0.1 * rng.random()
    if figures.latency is not None:
        ratio = 0.3 + 0.5 * rng.random()
        latency = replace(figures.latency, ratio=ratio, median_ms=2 * ratio)
        figures = replace(figures, accuracy=accuracy, accuracy_drop=0.9 - accuracy, latency_ratio=ratio, latency=latency)
        figures = replace(figures, size_ratio=0.2 + 0.5 * rng.random())
    return replace(template, number=number, layers=layers, measurement=figures, violations=study.budget.violations(figures))


if __name__ == "__main__":
    main()
