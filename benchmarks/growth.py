"""What a long search takes from its process: `python -m benchmarks.growth [OVERRIDES]`.

A real search of 500 trials on a tiny net, with its default sampler, SQLite and MLflow. Every 50 trials: resident memory, and
how many files, threads and child processes are open.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_module
from torch import nn

from autocompress import hookimpl
from autocompress.config import CONFIG_MODULE, job_from, register
from autocompress.display.progress import Progress
from autocompress.record import TrialRecord
from autocompress.registry import load_registry
from autocompress.run import run
from autocompress.verbs import build_task
from benchmarks.workbench import publish

EVERY, TRIALS = 50, 500
ASKED_MB = 50

OVERRIDES = (
    *("model.factory=benchmarks.growth:tiny_net", "model.name=tiny", "model.train_epochs=0", "data=digits"),
    *("objective=pareto", f"search.trials={TRIALS}", "trial.subsets=[]", "trial.load_processes=1"),
    *("timing.seconds=0.02", "timing.precision=1", "sensitivity.seconds=0.02", "probe.enabled=false"),
)


def tiny_net() -> nn.Module:
    """Ten layers, so that there are enough policies; not trained."""
    torch.manual_seed(0)
    inner = [part for _ in range(8) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


@dataclass(frozen=True)
class Held:
    """What this process has after a trial.

    Attributes:
        files: open file descriptors.
        children: processes that it started and that have not been waited for.
    """

    trial: int
    resident_mb: float
    files: int
    threads: int
    children: int

    @classmethod
    def now(cls, trial: int) -> Held:
        """By the kernel's own account."""
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        children = [len(task.read_text().split()) for task in Path("/proc/self/task").glob("*/children")]
        files = len(list(Path("/proc/self/fd").iterdir())) - 1  # without the one that lists them
        return cls(trial, int(status["VmRSS"].split()[0]) / 1024, files, threading.active_count(), sum(children))


class Census:
    """Counts after every so many trials, when all trackers have been told."""

    def __init__(self, every: int) -> None:
        self._every, self._trials = every, 0
        self.held: list[Held] = []

    @hookimpl(trylast=True)
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        """One more trial."""
        self._trials += 1
        if self._trials % self._every == 0:
            self.held.append(Held.now(self._trials))


def held_while_searching(overrides: Sequence[str], every: int) -> list[Held]:
    """Search as the command line does, in this process, also when the sampler sees nothing left to gain."""
    registry, census = load_registry(), Census(every)
    register(registry)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        own = [f"tracking.mlflow.root={folder}/mlflow", *overrides]
        job = job_from(compose("search", overrides=own), registry, Path(folder))
        settings = replace(job.settings, folder=Path(folder) / "study")
        registry.manager.register(census)
        with mock.patch("autocompress.searching.ending.HOPELESS_IN_A_ROW", TRIALS):
            run(build_task(job, settings, Progress()), settings, registry, Progress())
    return census.held


def growth(held: Sequence[Held]) -> dict[str, Any]:
    """The first count against the last."""
    first, last = held[0], held[-1]
    return {
        "from_trial": first.trial,
        "to_trial": last.trial,
        "resident_mb": last.resident_mb - first.resident_mb,
        "files": last.files - first.files,
        "threads": last.threads - first.threads,
        "children": last.children - first.children,
    }


def main() -> None:
    """Print and publish; the exit status says whether it grows by less than was asked for."""
    held = held_while_searching([*OVERRIDES, *sys.argv[1:]], EVERY)
    found = growth(held)
    publish("growth", {"growth": found, "held": [asdict(each) for each in held]})
    sys.stdout.write("\n".join(map(str, [*held, found])) + "\n")
    sys.exit(found["resident_mb"] >= ASKED_MB or max(found["files"], found["threads"], found["children"]) > 0)


if __name__ == "__main__":
    main()
