"""What a trial costs besides evaluating and measuring: `python -m benchmarks.overhead [OVERRIDES]`.

EfficientNet-Lite0 by default.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from hydra import compose, initialize_config_module

from autocompress import hookimpl
from autocompress.config import CONFIG_MODULE, Job, job_from, register
from autocompress.display.progress import Progress
from autocompress.record import TrialRecord
from autocompress.registry import load_registry
from autocompress.run import run
from autocompress.verbs import build_task

RESULTS = Path(__file__).parent / "results"
MEASURING = ("check", "latency", "accuracy")
OVERRIDES = ["+experiment=imagenet_efficientnet_lite0", "objective=pareto", "search.trials=10"]


class Clock:
    """Notes when each trial's record is handed to the trackers, and when all of them are done with it."""

    def __init__(self) -> None:
        self.handed: list[float] = []
        self.done: list[float] = []
        self.records: list[TrialRecord] = []

    @hookimpl(trylast=True)
    def autocompress_search_started(self) -> None:
        """The first trial starts now."""
        self.done.append(time.perf_counter())

    @hookimpl(trylast=True)
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        """Everything about the trial is done, logging included."""
        self.done.append(time.perf_counter())
        self.records.append(record)


class Before:
    """Runs before the trackers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @hookimpl(tryfirst=True)
    def autocompress_trial_finished(self) -> None:
        """The trackers take over now."""
        self._clock.handed.append(time.perf_counter())


def main() -> None:
    """Search a little, and take the trials' time apart."""
    overrides = sys.argv[1:] or OVERRIDES
    registry = load_registry()
    register(registry)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job: Job = job_from(compose("search", overrides=overrides), registry, Path())
    progress, clock = Progress(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(job.settings, folder=Path(folder) / "study")
        task = build_task(job, settings, progress)
        registry.manager.register(clock)
        registry.manager.register(Before(clock))
        result = run(task, settings, registry, progress)
    walls = [end - start for start, end in pairwise(clock.done)]
    logging = [end - start for start, end in zip(clock.handed, clock.done[1:], strict=True)]
    measured = [sum(record.seconds.get(gate, 0.0) for gate in MEASURING) for record in clock.records]
    others = [wall - seconds for wall, seconds in zip(walls, measured, strict=True)]
    warm = [record.seconds["build"] for record in clock.records[len(clock.records) // 2 :] if "build" in record.seconds]
    figures = {
        "build_seconds_warm_median": median(warm),
        "mlflow_seconds_per_trial_median": median(logging),
        "other_share_median": median(other / wall for other, wall in zip(others, walls, strict=True)),
        "trial_seconds_median": median(walls),
        "trials": len(clock.records),
        "device": result.device,
        "versions": dict(result.versions),
        "command": " ".join(["python -m benchmarks.overhead", *sys.argv[1:]]),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "overhead.json" if overrides is OVERRIDES else "overhead_other.json"
    (RESULTS / name).write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
