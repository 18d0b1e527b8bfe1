"""What a search and the sensitivity tables start from: the exported model, calibrated, and what may be decided about it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autocompress.calibration import Calibration
from autocompress.channels import ChannelGroups, find_groups
from autocompress.components import Metric
from autocompress.compress import LayerDatabase
from autocompress.device import Device, open_device
from autocompress.effects import Journal
from autocompress.errors import ConfigError
from autocompress.evaluation import Evaluator
from autocompress.graph import BaseGraph
from autocompress.policy import INTEGER_BITS
from autocompress.preparation import prepare
from autocompress.progress import Progress
from autocompress.settings import Settings
from autocompress.space import SearchSpace, build_space
from autocompress.sparsity import CHANNEL
from autocompress.task import Task, check_labels
from autocompress.trial import Bench
from autocompress.twin import verify_groups


@dataclass(frozen=True)
class Workspace:
    """A task that is ready to be compressed.

    Attributes:
        identity: a name for people, then model, data, device and components: what measurements depend on. Seed and effort may
            change.
        groups: those that can be cut, and why the others cannot.
        journal: what is known of single options.
    """

    identity: Sequence[str]
    groups: ChannelGroups
    bench: Bench
    space: SearchSpace
    journal: Journal


@contextmanager
def open_workspace(task: Task, settings: Settings, progress: Progress) -> Iterator[Workspace]:
    """The stages before anything is measured; at the end the runtime's process stops and what was only cached goes.

    Raises:
        ExportError: the model does not export.
        DataError: labels do not fit the model's outputs.
        ConfigError: nothing is left to decide.
    """
    with open_device(settings.components.target, torch.get_num_threads()) as device:
        try:
            yield _prepared(task, settings, device, progress)
        finally:
            shutil.rmtree(settings.folder / "cache", ignore_errors=True)


def _prepared(task: Task, settings: Settings, device: Device, progress: Progress) -> Workspace:
    with progress.stage("export"):
        task, graph = prepare(task, settings.components, settings.folder / "fp32.onnx")
    _check_labels(task, settings.components.metric)
    with progress.stage("channel groups"):
        groups = _groups(task, graph, settings)
    with progress.stage("calibration"):
        bench = _bench(task, graph, groups, device, settings)
        space = _space(bench, settings)
        bench.calibration.observe()
    identity = _identity(task, graph, device, settings)
    measured_on = f"{settings.sensitivity.images} examples"
    journal = Journal(settings.folder / "sensitivity.jsonl", [*identity, measured_on])
    return Workspace(identity, groups, bench, space, journal)


def _check_labels(task: Task, metric: Metric) -> None:
    if metric.class_scores and not metric.against_reference:
        with torch.no_grad():
            check_labels(task, task.model(task.example_input[:1]).flatten(1).shape[1])


def _groups(task: Task, graph: BaseGraph, settings: Settings) -> ChannelGroups:
    """Channel groups, when some pruner may cut channels."""
    if not settings.components.pruners or CHANNEL not in settings.space.structures:
        return ChannelGroups()
    example = task.example_input[:1]
    found = find_groups(graph, task.model, example, settings.space.channel_multiple)
    return verify_groups(graph, task.model, found, example, settings.components.target, settings.folder / "cache")


def _bench(task: Task, graph: BaseGraph, groups: ChannelGroups, device: Device, settings: Settings) -> Bench:
    components = settings.components
    if graph.batch not in (None, settings.timing.batch):
        raise ConfigError(f"timing.batch={settings.timing.batch}: this model's file takes batches of {graph.batch} only")
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
        latency_percentile=settings.goal.budget.latency_percentile,
    )


def _space(bench: Bench, settings: Settings) -> SearchSpace:
    names = [*settings.components.observers] if settings.components.searched_observers else []
    ranges = {name: bench.calibration.grids(INTEGER_BITS, name) for name in names}
    return build_space(bench.graph, bench.components, bench.groups, settings.space, bench.database, ranges)


def _identity(task: Task, graph: BaseGraph, device: Device, settings: Settings) -> list[str]:
    """The device and its runtime are part of it: a latency, and even an accuracy, is only true where it was measured."""
    components = settings.components
    configured = [*components.quantizers.values(), *components.pruners.values(), *components.recoveries]
    configured += [components.observer, components.metric, components.target, *components.searched_observers.values()]
    timed = {"batch": settings.timing.batch, "percentile": settings.goal.budget.latency_percentile}
    described = json.dumps([{component.name: dataclasses.asdict(component)} for component in configured])  # type: ignore[call-overload]
    return [task.name, graph.digest, task.digest(), json.dumps(device.describe() | timed), described]
