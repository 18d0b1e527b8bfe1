"""The main path: a trained model and a budget in, the best measured file out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Measurement
from autocompress.calibration import Calibration
from autocompress.channels import ChannelGroups, find_groups
from autocompress.components import Metric
from autocompress.compress import LayerDatabase
from autocompress.conclusion import conclude
from autocompress.device import Device, open_device
from autocompress.effects import Journal
from autocompress.evaluation import Evaluator
from autocompress.graph import OPSET, BaseGraph
from autocompress.loop import Goal, SearchRun, run_trials
from autocompress.measured_problem import MeasuredProblem
from autocompress.notify import Notifier
from autocompress.preparation import prepare
from autocompress.progress import Progress
from autocompress.quality import Quality
from autocompress.record import Objective, SearchResult, StudyContext
from autocompress.registry import Registry, load_registry
from autocompress.report import write_result
from autocompress.reproducibility import mask_overlap
from autocompress.settings import Settings
from autocompress.space import build_space
from autocompress.sparsity import CHANNEL
from autocompress.study import SearchStudy, open_study
from autocompress.task import Task, check_labels
from autocompress.trial import Bench
from autocompress.twin import verify_groups


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
        device = stack.enter_context(open_device(settings.components.target, torch.get_num_threads()))
        stack.callback(shutil.rmtree, settings.folder / "cache", ignore_errors=True)
        notify = stack.enter_context(Notifier(registry.manager, tuple(settings.components.trackers)))
        with progress.stage("export"):
            task, graph = prepare(task, settings.components, settings.folder / "fp32.onnx")
        _check_labels(task, settings.components.metric)
        with progress.stage("channel groups"):
            groups = _groups(task, graph, settings)
        with progress.stage("calibration"):
            bench = _bench(task, graph, groups, device, settings)
            space = build_space(graph, settings.components, groups.groups, settings.space, bench.database)
            bench.calibration.observe()
        with progress.stage("baseline"):
            baseline = bench.baseline()
        progress.note(_described(baseline, Quality.of(settings.components.metric)))
        identity = _identity(task, graph, settings)
        journal = Journal(settings.folder / "sensitivity.jsonl", identity)
        goal = settings.goal
        problem = MeasuredProblem(goal.objective, goal.budget, baseline, bench, space, settings.sensitivity, journal, progress)
        study = _study(identity, problem, settings)
        context = _context(task, study, graph, device, baseline, settings, registry)
        notify("autocompress_search_started", study=context, records=study.records())
        search_run = SearchRun(bench, settings.goal, settings.search, settings.folder, progress)
        tell = partial(notify, "autocompress_trial_finished", study=context)
        outcome = run_trials(search_run, study, space, lambda record: tell(record=record))
        result = conclude(search_run, outcome, baseline)
        if result.policy.prunes:
            with progress.stage("mask overlap"):
                overlap = mask_overlap(bench, result.policy, settings.folder / "cache", settings.search.seed)
            result = dataclasses.replace(result, mask_overlap=overlap)
        result = _completed(result, context, groups, settings, time.monotonic() - start)
        write_result(result)
        for line in notify("autocompress_search_finished", study=context, result=result):
            progress.note(line)
    return result


def _check_labels(task: Task, metric: Metric) -> None:
    if metric.class_scores and not metric.against_reference:
        with torch.no_grad():
            check_labels(task, task.model(task.example_input[:1]).flatten(1).shape[1])


def _described(baseline: Measurement, quality: Quality) -> str:
    assert baseline.accuracy is not None
    value = quality.value(baseline.accuracy)
    return f"FP32: {quality.metric} {value}, {baseline.size_bytes:,} bytes, {baseline.latency_ms:.3f} ms"


def _groups(task: Task, graph: BaseGraph, settings: Settings) -> ChannelGroups:
    """Channel groups, when some pruner may cut channels."""
    if not settings.components.pruners or CHANNEL not in settings.space.structures:
        return ChannelGroups()
    example = task.example_input[:1]
    found = find_groups(graph, task.model, example, settings.space.channel_multiple)
    return verify_groups(graph, task.model, found, example, settings.components.target, settings.folder / "cache")


def _bench(task: Task, graph: BaseGraph, groups: ChannelGroups, device: Device, settings: Settings) -> Bench:
    components = settings.components
    calibration = Calibration(task, graph, components, settings.folder / "cache", settings.search.seed)
    return Bench(
        task=task,
        graph=graph,
        groups=groups.groups,
        components=components,
        calibration=calibration,
        database=LayerDatabase(graph, calibration, components, groups.groups),
        device=device,
        evaluator=Evaluator.prepare(task, components.metric, graph, device, settings.folder / "cache"),
        timing=settings.timing,
        settings=settings.trial,
    )


def _identity(task: Task, graph: BaseGraph, settings: Settings) -> list[str]:
    """A name for people, then model, data and components: what measurements depend on; the seed and the effort may change."""
    components = settings.components
    configured = [*components.quantizers.values(), *components.pruners.values(), *components.recoveries]
    configured += [components.observer, components.metric, components.target]
    described = json.dumps([{component.name: dataclasses.asdict(component)} for component in configured])  # type: ignore[call-overload]
    return [task.name, graph.digest, task.digest(), described]


def _study(identity: Sequence[str], problem: MeasuredProblem, settings: Settings) -> SearchStudy:
    sampler = settings.components.sampler.create(problem, settings.search.seed)
    return open_study(settings.folder / "study.db", identity, problem.space, problem.objective, problem.budget, sampler)


def _context(
    task: Task,
    study: SearchStudy,
    graph: BaseGraph,
    device: Device,
    baseline: Measurement,
    settings: Settings,
    registry: Registry,
) -> StudyContext:
    description = device.describe()
    packages = ("torch", "optuna", "onnx-ir", "numpy")
    return StudyContext(
        id=study.id,
        name=study.name,
        model=task.name,
        data=task.digest(),
        target=settings.components.target.name,
        metric=settings.components.metric.name,
        percent=settings.components.metric.percent,
        device=description["device"],
        objective=settings.goal.objective,
        budget=settings.goal.budget,
        folder=settings.folder,
        baseline=baseline,
        reference=Artifact.of(graph.path, "onnx"),
        versions={
            "runtime": description["runtime"],
            **{name: importlib.metadata.version(name) for name in packages},
            **registry.versions(),
        },
        config=settings.plain,
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
        minimum_runtime=_minimum_runtime(settings),
        reasons=[*result.reasons, *refused],
    )


def _minimum_runtime(settings: Settings) -> Mapping[str, object]:
    return {"opset": OPSET, **settings.components.target.capabilities().minimum_runtime}
