"""What a search and the sensitivity tables start from: the exported model, calibrated, and what may be decided about it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.export_check import check_export
from autocompress.building.preparation import prepare
from autocompress.building.twin import verify_groups
from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.choices.worthwhile import Uses, worthwhile
from autocompress.components import Components, Metric
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, DataError
from autocompress.guarding.held_folder import held_folder
from autocompress.guarding.time_limit import check_limit
from autocompress.inputs.cache import cache_folder
from autocompress.measuring.device import Device, open_device
from autocompress.network.channels import ChannelGroups, find_groups
from autocompress.network.graph import BaseGraph
from autocompress.policy import INTEGER_BITS
from autocompress.prediction.effects import Journal
from autocompress.probing.capability_probe import CapabilityProbe, find_capabilities
from autocompress.probing.findings import Findings
from autocompress.settings import Settings
from autocompress.studies.opening import searched_spaces
from autocompress.studies.storage import Storage, existing_storage
from autocompress.task import Task, check_labels
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.tensors.guarded_weights import guarded
from autocompress.tensors.narrow_weights import with_narrow_weights
from autocompress.tensors.sparsity import CHANNEL
from autocompress.trials.trial import Bench


@dataclass(frozen=True)
class Workspace:
    """A task that is ready to be compressed.

    Attributes:
        identity: a name for people, then model, data, device and components: what measurements depend on. Seed and effort may
            change.
        groups: those that can be cut, and why the others cannot.
        journal: what is known of single options.
        notes: what the device does not do well, and what is not searched for it.
    """

    identity: Sequence[str]
    groups: ChannelGroups
    bench: Bench
    space: SearchSpace
    journal: Journal
    notes: Sequence[str] = ()


@contextmanager
def open_workspace(task: Task, settings: Settings, progress: Progress) -> Iterator[Workspace]:
    """The stages before anything is measured; at the end the runtime's process stops and what was only cached goes.

    Raises:
        ExportError: the model does not export.
        DataError: labels do not fit the model's outputs.
        ConfigError: nothing is left to decide, or another process is at work in the folder.
        StorageError: the configured database cannot be reached.
    """
    check_limit("search.trial_timeout", settings.search.trial_timeout)
    patience = settings.trial.reconnect_seconds
    with (
        held_folder(settings.scratch),
        existing_storage(settings.study, settings.folder) as storage,
        open_device(settings.components.target, torch.get_num_threads(), patience=patience) as device,
    ):
        try:
            yield _prepared(task, settings, device, storage, progress)
        finally:
            shutil.rmtree(settings.scratch / "cache", ignore_errors=True)


def _prepared(task: Task, settings: Settings, device: Device, storage: Storage | None, progress: Progress) -> Workspace:
    with progress.stage("export"):
        task, graph = prepare(task, settings.components, settings.scratch / "fp32.onnx")
    _check_labels(task, settings.components.metric)
    with progress.stage("channel groups"):
        groups = _groups(task, graph, settings)
    findings = _findings(graph, device, settings, progress)
    saturating = findings.saturating()
    used = with_narrow_weights(guarded(settings.components), saturating)
    settings = dataclasses.replace(settings, components=with_narrow_weights(settings.components, saturating))
    with progress.stage("calibration"):
        bench = _bench(task, graph, groups, device, used, settings)
        bench.evaluator.keep_reference(graph, "calibration")
        check_export(task, "calibration", bench.evaluator.reference["calibration"])
        space = _space(bench, settings)
        bench.calibration.observe()
    identity = _identity(task, graph, device, settings)
    searched = searched_spaces(storage, identity, space.digest) if storage is not None else set()
    space, notes = _part(space, graph, findings, searched, settings)
    measured_on = f"{settings.sensitivity.images} examples"
    journal = Journal(settings.folder / "sensitivity.jsonl", [*identity, measured_on])
    for note in notes:
        progress.note(note)
    return Workspace(identity, groups, bench, space, journal, notes)


def _findings(graph: BaseGraph, device: Device, settings: Settings, progress: Progress) -> Findings:
    """What the device does with the kinds of layers and operators that the model has."""
    if not settings.probe.enabled:
        return Findings("", "", "")
    kinds, types = {layer.kind for layer in graph.layers.values()}, {op.op_type for op in graph.ops}
    probe = CapabilityProbe.of(settings, device, progress)
    wanted = [subject for subject in probe.subjects() if subject[1] in kinds | types]
    with progress.stage("capability probe"):
        return find_capabilities(probe, wanted, settings.folder / "probe.json", cache_folder())


def _part(
    space: SearchSpace, graph: BaseGraph, findings: Findings, searched: set[str], settings: Settings
) -> tuple[SearchSpace, Sequence[str]]:
    """The space without what the goal has no use for, unless the study was searched with more: that answers sooner."""
    uses = Uses.of(settings.goal.objective, settings.goal.budget)
    part, notes = worthwhile(space, graph, settings.components, findings, uses)
    if searched and part.digest not in searched:
        return worthwhile(space, graph, settings.components, findings, Uses(time=False, size=False))
    return part, notes


def _check_labels(task: Task, metric: Metric) -> None:
    if metric.class_scores and not metric.against_reference:
        with torch.no_grad():
            outputs = task.model(task.example_input[:1])
        if outputs.ndim < 2:
            raise DataError(f"metric {metric.name}: the model gives one number for each example; expected scores of classes")
        check_labels(task, outputs.flatten(1).shape[1])


def _groups(task: Task, graph: BaseGraph, settings: Settings) -> ChannelGroups:
    """Channel groups, when some pruner may cut channels."""
    if not settings.components.pruners or CHANNEL not in settings.space.structures:
        return ChannelGroups()
    example = task.example_input[:1]
    found = find_groups(graph, task.model, example, settings.space.channel_multiple)
    return verify_groups(graph, task.model, found, example, settings.components.target, settings.scratch / "cache")


def _bench(
    task: Task, graph: BaseGraph, groups: ChannelGroups, device: Device, components: Components, settings: Settings
) -> Bench:
    if graph.batch not in (None, settings.timing.batch):
        raise ConfigError(f"timing.batch={settings.timing.batch}: this model's file takes batches of {graph.batch} only")
    calibration = Calibration(task, graph, components, settings.scratch / "cache", settings.search.seed)
    return Bench(
        task=task,
        graph=graph,
        groups=groups.groups,
        components=components,
        calibration=calibration,
        database=LayerDatabase(graph, calibration, components, groups.groups),
        device=device,
        evaluator=Evaluator.prepare(task, components.metric, graph, device, settings.scratch / "cache"),
        timing=settings.timing,
        settings=settings.trial,
        latency_percentile=settings.goal.budget.latency_percentile,
        trial_timeout=settings.search.trial_timeout,
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
