"""What a trial costs besides measuring, in a study of a thousand: `python -m benchmarks.long_study accuracy`.

The real loop with its default sampler and a SQLite file, over 60 layers with 12 options each; only the measurement is made up
and takes no time. A trial is everything from one end to the next: asking, proposing, storing, and the loop's own bookkeeping.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from autocompress_plugins.accuracy import Accuracy
from autocompress_plugins.knapsack import Knapsack
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime

from autocompress import Budget, LayerPolicy, Measurement, Policy, SyntheticProblem, TrialRecord
from autocompress.choices.space import SearchSpace
from autocompress.display.progress import Progress
from autocompress.record import LayerRow, Objective
from autocompress.searching.loop import Goal, SearchRun, SearchSettings, run_trials
from autocompress.studies.opening import open_study
from autocompress.studies.storage import sqlite_storage
from autocompress.studies.study import RECORD
from benchmarks.workbench import publish

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LAYERS, OPTIONS = 60, 12
MOMENTS = (50, 100, 200, 300, 1000)
AROUND = 10
"""Trials on each side of a moment whose median is told."""

BUDGETS: Mapping[Objective, Budget] = {"accuracy": Budget(size_ratio=0.6), "pareto": Budget()}


@dataclass
class EndlessProblem(SyntheticProblem):
    """Reads what a search stores, and always hopes for more, so that the study becomes as long as it is asked for."""

    @property
    def expected_gain(self) -> float:  # type: ignore[override]
        """Much."""
        return np.inf

    @expected_gain.setter
    def expected_gain(self, value: float) -> None:
        """Not asked."""

    def measured(self, trial: FrozenTrial) -> Measurement | None:
        """What a finished trial measured."""
        stored = trial.user_attrs.get(RECORD)
        return None if stored is None else Measurement.from_dict(stored["measurement"])


def made_up_space() -> SearchSpace:
    """Options that differ, whatever they are."""
    options = tuple(LayerPolicy("int8", 8, "sparse", step / OPTIONS) if step else LayerPolicy() for step in range(OPTIONS))
    return SearchSpace({f"layer{index}": options for index in range(LAYERS)}, {})


def free_trial(problem: SyntheticProblem, space: SearchSpace) -> Callable[..., tuple[TrialRecord, None]]:
    """Stands in for `run_trial`: a record as large as a real one."""
    row = LayerRow("layer", "conv2d", 1000, 10_000, "int8", 8, "sparse", 0.5, "dense", 1000, -1.0, 1.0, 0.0)

    def trial(
        bench: object, policy: Policy, budget: Budget, rivals: object, number: int, kind: Any, path: Path
    ) -> tuple[TrialRecord, None]:
        figures = problem.evaluate(problem.choices(space.indices(policy)))
        state = "pruned" if figures.accuracy is None else "complete"
        violations = budget.violations(figures)
        return TrialRecord(number, kind, state, "done", "", policy, figures, violations, f"{number:064}", (row,) * LAYERS), None

    return trial


def seconds_of_trials(objective: Objective, trials: int) -> Sequence[tuple[float, float]]:
    """Wall and processor seconds of each trial."""
    space = made_up_space()
    problem = EndlessProblem(space.sizes, objective, BUDGETS[objective])
    ends = [(time.perf_counter(), time.process_time())]
    with tempfile.TemporaryDirectory() as name:
        bench: Any = SimpleNamespace(
            trial_timeout=None,
            graph=None,
            components=SimpleNamespace(slow_recoveries=[], metric=Accuracy(), target=OnnxRuntime()),
            evaluator=SimpleNamespace(folder=Path(name)),
        )
        settings = SearchSettings(trials=trials, start="none")
        run = SearchRun(bench, Goal(objective, problem.budget), problem, settings, Path(name), Progress(io.StringIO()))
        storage, identity = sqlite_storage(Path(name) / "study.db"), ["made up"]
        study = open_study(storage, identity, space, objective, problem.budget, lambda done: Knapsack().create(problem, done))
        with mock.patch("autocompress.searching.loop.run_trial", free_trial(problem, space)):
            run_trials(run, study, space, lambda record: ends.append((time.perf_counter(), time.process_time())))
    differences = np.diff(np.array(ends), axis=0)
    return [(float(wall), float(processor)) for wall, processor in differences]


def figures(objective: Objective, trials: int) -> dict[str, Any]:
    """Medians around some trials, and what the last cost against those around the first moment."""
    found = seconds_of_trials(objective, trials)
    moments = [moment for moment in MOMENTS if moment < trials] + [trials]
    parts = {moment: found[max(0, moment - AROUND) : moment + AROUND] for moment in moments}
    wall = {moment: median(seconds for seconds, _ in part) for moment, part in parts.items()}
    processor = {moment: median(seconds for _, seconds in part) for moment, part in parts.items()}
    return {
        "objective": objective,
        "seconds": wall,
        "processor_seconds": processor,
        "last_to_first": wall[moments[-1]] / wall[moments[0]],
        "last_to_first_processor": processor[moments[-1]] / processor[moments[0]],
    }


def main() -> None:
    """One kind of goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objective", choices=list(BUDGETS))
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    row = figures(arguments.objective, arguments.trials)
    publish(f"long_study_{arguments.objective}", row)
    sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
