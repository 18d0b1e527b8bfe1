"""The main path: a trained model and a budget in, the best measured file out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.channels import ChannelGroups
from autocompress.conclusion import conclude
from autocompress.errors import BudgetError
from autocompress.graph import OPSET
from autocompress.loop import Goal, SearchRun, run_trials
from autocompress.measured_problem import MeasuredProblem
from autocompress.notify import Notifier
from autocompress.progress import Progress
from autocompress.quality import Quality
from autocompress.record import Objective, SearchResult, StudyContext
from autocompress.registry import Registry, load_registry
from autocompress.report import resolution_note, write_result
from autocompress.reproducibility import mask_overlap
from autocompress.settings import Settings
from autocompress.study import SearchStudy, open_study
from autocompress.task import Task
from autocompress.trial import Bench
from autocompress.workspace import open_workspace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def search(
    task: Task,
    budget: Budget | None = None,
    *,
    objective: Objective = "accuracy",
    trials: int | None = None,
    output_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> SearchResult:
    """Find the best file for a task within a budget; the same call on the same folder resumes.

    Args:
        objective: `accuracy`: most accurate within the budget; `latency`, `size`: fastest or smallest within it; `pareto`: all.
        trials: finished trials of the study, earlier runs included; 40 by default.
        output_dir: where results go; `outputs/<task.name>` by default.
        overrides: any other setting, as on the command line, for example `["pruner=[sparse]", "target.onnxruntime.threads=2"]`.
    """
    from autocompress.config import compose_settings

    registry = load_registry()
    effort = [f"search.trials={trials}"] if trials is not None else []
    settings = compose_settings([f"metric={task.metric}", f"objective={objective}", *effort, *overrides], registry)
    folder = Path(output_dir) if output_dir is not None else Path("outputs") / task.name
    goal = Goal(settings.goal.objective, budget if budget is not None else settings.goal.budget)
    return run(task, dataclasses.replace(settings, goal=goal, folder=folder.resolve()), registry, Progress())


def run(task: Task, settings: Settings, registry: Registry, progress: Progress) -> SearchResult:
    """The stages of a search, in order."""
    start = time.monotonic()
    with ExitStack() as stack:
        notify = stack.enter_context(Notifier(registry.manager, tuple(settings.components.trackers)))
        workspace = stack.enter_context(open_workspace(task, settings, progress))
        bench, goal = workspace.bench, settings.goal
        with progress.stage("baseline"):
            check = bench.self_check()
            baseline = bench.baseline(check)
            check_measured(goal.budget, baseline)
        progress.note(_described(baseline, Quality.of(settings.components.metric)))
        progress.note(resolution_note(check))
        parts = (bench, workspace.space, settings.sensitivity, workspace.journal, progress)
        problem = MeasuredProblem(goal.objective, goal.budget, baseline, *parts)
        study = _study(workspace.identity, problem, settings)
        context = _context(bench, study, baseline, check, settings, registry)
        notify("autocompress_search_started", study=context, records=study.records())
        search_run = SearchRun(bench, goal, problem, settings.search, settings.folder, progress)
        tell = partial(notify, "autocompress_trial_finished", study=context)
        outcome = run_trials(search_run, study, workspace.space, lambda record: tell(record=record))
        result = _with_predictions(conclude(search_run, outcome, baseline), problem)
        if result.policy.prunes:
            with progress.stage("mask overlap"):
                overlap = mask_overlap(bench, result.policy, settings.folder / "cache", settings.search.seed)
            result = dataclasses.replace(result, mask_overlap=overlap)
        result = dataclasses.replace(result, reasons=[*result.reasons, *workspace.notes])
        result = _completed(result, context, workspace.groups, settings, time.monotonic() - start)
        write_result(result)
        for line in notify("autocompress_search_finished", study=context, result=result):
            progress.note(line)
    return result


def _with_predictions(result: SearchResult, problem: MeasuredProblem) -> SearchResult:
    """Add what the tables said of the answer, and how far off the latency model was."""
    predicted = problem.predicted(result.policy) if result.best_trial is not None else {}
    error = problem.latency_error(result.records)
    return dataclasses.replace(result, predicted=predicted, reasons=[*result.reasons, *([error] if error else [])])


def check_measured(budget: Budget, baseline: Measurement) -> None:
    """Refuse a limit that no file could be shown to meet.

    Raises:
        BudgetError: a limit is on a figure that could not be measured of FP32.
    """
    if missing := budget.unmeasured(baseline):
        raise BudgetError(f"budget.{missing[0]}: the device does not tell this figure; expected null (no limit) there")


def _described(baseline: Measurement, quality: Quality) -> str:
    assert baseline.accuracy is not None
    value = quality.value(baseline.accuracy)
    return f"FP32: {quality.metric} {value}, {baseline.size_bytes:,} bytes, {baseline.latency_ms:.3f} ms"


def _study(identity: Sequence[str], problem: MeasuredProblem, settings: Settings) -> SearchStudy:
    def sampler(trials: int) -> BaseSampler:
        return settings.components.sampler.create(problem, settings.search.seed + trials)

    return open_study(settings.folder / "study.db", identity, problem.space, problem.objective, problem.budget, sampler)


def _context(
    bench: Bench, study: SearchStudy, baseline: Measurement, check: Latency, settings: Settings, registry: Registry
) -> StudyContext:
    description = bench.device.describe()
    packages = ("torch", "optuna", "onnx-ir", "numpy")
    return StudyContext(
        id=study.id,
        name=study.name,
        model=bench.task.name,
        data=bench.task.digest(),
        target=settings.components.target.name,
        metric=settings.components.metric.name,
        percent=settings.components.metric.percent,
        device=description["device"],
        objective=settings.goal.objective,
        budget=settings.goal.budget,
        folder=settings.folder,
        baseline=baseline,
        reference=Artifact.of(bench.graph.path, "onnx"),
        versions={
            "runtime": description["runtime"],
            **{name: importlib.metadata.version(name) for name in packages},
            **registry.versions(),
        },
        config=settings.plain,
        environment=bench.device.environment(),
        self_check=check,
    )


def _completed(
    result: SearchResult, context: StudyContext, groups: ChannelGroups, settings: Settings, seconds: float
) -> SearchResult:
    """Add what the stages do not know."""
    refused = [f"channels of {name} were not searched: {reason}" for name, reason in groups.refused.items()]
    return dataclasses.replace(
        result,
        seconds=seconds,
        versions=context.versions,
        device=context.device,
        environment=context.environment,
        self_check=context.self_check,
        minimum_runtime=_minimum_runtime(settings),
        reasons=[*result.reasons, *refused],
    )


def _minimum_runtime(settings: Settings) -> Mapping[str, object]:
    return {"opset": OPSET, **settings.components.target.capabilities().minimum_runtime}
