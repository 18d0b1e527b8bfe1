"""The main path: a trained model and a budget in, the best measured file out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.display.progress import Progress
from autocompress.errors import BudgetError, ConfigError
from autocompress.guarding.whole_file import write_whole
from autocompress.network.channels import ChannelGroups
from autocompress.network.exporting import OPSET
from autocompress.prediction.latency_model import prediction_error
from autocompress.prediction.measured_problem import MeasuredProblem
from autocompress.quality import Quality
from autocompress.record import Objective, SearchResult, StudyContext
from autocompress.registry import Registry, load_registry
from autocompress.reporting.delivery import deliver
from autocompress.reporting.notify import Notifier
from autocompress.reporting.report import resolution_note, write_result
from autocompress.reporting.report_html import write_report
from autocompress.reporting.sensitivity import sensitivity_of
from autocompress.reporting.sensitivity_files import write_sensitivity
from autocompress.searching.conclusion import conclude
from autocompress.searching.loop import Goal, SearchRun, help_trials, run_trials
from autocompress.searching.reproducibility import mask_overlap
from autocompress.settings import Settings
from autocompress.studies.guarded_sampler import guarded_sampler
from autocompress.studies.opening import join_study, open_study
from autocompress.studies.storage import Storage, opened_storage
from autocompress.studies.study import SearchStudy
from autocompress.studies.study_file import save_study
from autocompress.task import Task
from autocompress.trials.trial import Bench
from autocompress.workspace import Workspace, open_workspace

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
        stack.enter_context(progress)
        notify = stack.enter_context(
            Notifier(registry.manager, tuple(settings.components.trackers), settings.search.trial_timeout)
        )
        workspace = stack.enter_context(open_workspace(task, settings, progress))
        bench, (problem, check) = workspace.bench, _problem(workspace, settings, progress)
        storage = stack.enter_context(opened_storage(settings.study, settings.folder))
        study = _study(storage, workspace.identity, problem, settings)
        stack.enter_context(study.held())
        baseline = problem.baseline
        context = _context(bench, study, baseline, check, settings, registry)
        save_study(context)
        notify("autocompress_search_started", study=context, records=study.records())
        search_run = SearchRun(bench, settings.goal, problem, settings.search, settings.folder, progress)
        tell = partial(notify, "autocompress_trial_finished", study=context)
        outcome = run_trials(search_run, study, workspace.space, lambda record: tell(record=record))
        result = _with_predictions(conclude(search_run, outcome, baseline), problem)
        if result.policy.prunes:
            with progress.stage("mask overlap"):
                overlap = mask_overlap(bench, result.policy, settings.folder / "cache", settings.search.seed)
            result = dataclasses.replace(result, mask_overlap=overlap)
        result = dataclasses.replace(result, reasons=[*result.reasons, *workspace.notes])
        result = _completed(result, context, workspace.groups, settings, time.monotonic() - start)
        result = deliver(context, result, settings.components.target.run_file)
        if tables := problem.tables:
            drop = settings.goal.budget.accuracy_drop
            write_sensitivity(sensitivity_of(workspace, settings.sensitivity, *tables, drop), settings.folder)
        write_result(result)
        save_study(context, result)
        write_report(context, result)
        for line in notify("autocompress_search_finished", study=context, result=result):
            progress.note(line)
    return result


def work(task: Task, settings: Settings, progress: Progress) -> str:
    """Run trials of a study that a search with the same settings has opened, until it ends; returns why it did.

    The search, on whichever machine it is, tells the trackers and concludes.

    Raises:
        ConfigError: no storage is configured, or no search has opened the study there.
    """
    if settings.study.storage is None:
        raise ConfigError("study.storage=null: a worker needs the PostgreSQL database that the search uses")
    with ExitStack() as stack:
        stack.enter_context(progress)
        scratch = stack.enter_context(TemporaryDirectory(prefix="autocompress-"))
        settings = dataclasses.replace(settings, own_folder=Path(scratch))
        workspace = stack.enter_context(open_workspace(task, settings, progress))
        problem, _ = _problem(workspace, settings, progress)
        storage = stack.enter_context(opened_storage(settings.study, settings.folder))
        study = _joined(storage, workspace.identity, problem, settings)
        progress.note(f"joined study {study.name}")
        search_run = SearchRun(workspace.bench, settings.goal, problem, settings.search, settings.folder, progress)
        return help_trials(search_run, study, workspace.space).ended


def _problem(workspace: Workspace, settings: Settings, progress: Progress) -> tuple[MeasuredProblem, Latency]:
    """What is looked for, beside the measured FP32 file, and that file timed against itself."""
    bench, goal = workspace.bench, settings.goal
    with progress.stage("baseline"):
        check = bench.self_check()
        baseline = bench.baseline(check)
        check_measured(goal.budget, baseline)
    progress.note(_described(baseline, Quality.of(settings.components.metric)))
    progress.note(resolution_note(check))
    parts = (bench, workspace.space, settings.sensitivity, workspace.journal, progress)
    return MeasuredProblem(goal.objective, goal.budget, baseline, *parts), check


def _with_predictions(result: SearchResult, problem: MeasuredProblem) -> SearchResult:
    """Add what the tables said of the answer, and how far off the latency model was."""
    predicted = problem.predicted(result.policy) if result.best_trial is not None else {}
    ratios = problem.latency_predictions(result.records)
    latencies = {r.number: r.measurement.latency.ratio for r in result.records if r.number in ratios and r.measurement.latency}
    error = [prediction_error([*ratios.values()], [latencies[number] for number in ratios])] if ratios else []
    return dataclasses.replace(result, predicted=predicted, latency_predictions=ratios, reasons=[*result.reasons, *error])


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


def _study(storage: Storage, identity: Sequence[str], problem: MeasuredProblem, settings: Settings) -> SearchStudy:
    def sampler(trials: int) -> BaseSampler:
        return guarded_sampler(settings.components.sampler, problem, settings.search.seed + trials)

    return open_study(storage, identity, problem.space, problem.objective, problem.budget, sampler)


def _joined(storage: Storage, identity: Sequence[str], problem: MeasuredProblem, settings: Settings) -> SearchStudy:
    """Workers must not all draw the same, so their seeds are random."""

    def sampler(_: int) -> BaseSampler:
        return guarded_sampler(settings.components.sampler, problem, random.SystemRandom().randrange(2**31))

    wanted = (identity, problem.space, problem.objective, problem.budget)
    return join_study(storage, *wanted, sampler, settings.study.wait_seconds)


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
        data_sets={name: examples.facts for name, examples in bench.task.sets.items()},
        example=_write_example(bench.task, settings.folder),
    )


def _write_example(task: Task, folder: Path) -> Path:
    """One input, for whoever tries the delivered file."""
    content = io.BytesIO()
    np.save(content, task.example_input[:1].numpy())
    return write_whole(folder / "example.npy", content.getvalue())


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
