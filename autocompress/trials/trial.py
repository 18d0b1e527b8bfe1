"""One trial: build the file, then pass one gate after another, the cheap ones first."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.accuracy.evaluation import Evaluator
from autocompress.accuracy.intervals import Statistics, paired_drop
from autocompress.accuracy.racing import Rival, find_defeat
from autocompress.artifact import Artifact
from autocompress.bounds import check_positive
from autocompress.budget import Budget, Latency, Measurement
from autocompress.building.candidate import Candidate, build, layer_rows, placement_warnings
from autocompress.building.recovery import Recoverable
from autocompress.components import Components
from autocompress.display.progress import Progress
from autocompress.errors import ConfigError, UnreachableError
from autocompress.guarding.disk import is_unwritable
from autocompress.guarding.time_limit import TimeUpError, too_long, within
from autocompress.measuring.device import PATIENCE_SECONDS, Device, TimingSettings
from autocompress.network.channels import ChannelGroup
from autocompress.network.graph import BaseGraph
from autocompress.policy import Policy
from autocompress.record import Gate, Kind, State, TrialRecord
from autocompress.task import Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import CompressedModel, LayerDatabase


@dataclass
class TrialSettings:
    """How much one trial measures, and how long it waits for the machine that measures.

    Attributes:
        subsets: shares of the search set after which a hopeless candidate is dropped (`autocompress.accuracy.racing`).
        minimum_subset: smallest number of examples of a subset.
        check_images: calibration examples on which the optimized run is compared with the unoptimized one.
        reconnect_seconds: how long a lost connection to another machine is tried again before the search ends; the same command
            then resumes with the very trial that waited. None: for ever.
        load_processes: fresh processes that load a file for its memory and load time; medians count. FP32 and finalists are
            always measured, trials where the budget limits one of the two.
    """

    subsets: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5])
    minimum_subset: int = 50
    check_images: int = 32
    reconnect_seconds: float | None = PATIENCE_SECONDS
    load_processes: int = 3

    def __post_init__(self) -> None:
        if self.load_processes < 1:
            raise ConfigError(f"trial.load_processes={self.load_processes}: expected at least 1")
        check_positive("trial", self, "minimum_subset", "check_images", "reconnect_seconds")
        if not all(0 < share <= 1 for share in self.subsets):
            raise ConfigError(f"trial.subsets={self.subsets}: expected shares of the search set, above 0 and at most 1")


SPREAD_RESAMPLES = 200
"""Bootstrap resamples for the standard error of a trial's drop."""


class _PrunedError(Exception):
    """The candidate cannot be the answer; carries the reason."""


@dataclass
class _Progress:
    """What is known so far about the candidate of one trial."""

    gate: Gate = "build"
    measurement: Measurement = field(default_factory=Measurement)
    artifact: Artifact | None = None
    candidate: Candidate | None = None
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    statistics: Statistics | None = None
    given_up: bool = False

    @property
    def files(self) -> Sequence[Artifact]:
        """What must not have changed meanwhile."""
        return [] if self.artifact is None else [self.artifact]

    @contextmanager
    def at(self, gate: Gate) -> Iterator[None]:
        """Enter a gate and time it."""
        self.gate, start = gate, time.perf_counter()
        try:
            yield
        finally:
            self.seconds[gate] = time.perf_counter() - start

    def learn(self, **figures: object) -> None:
        """Add measured figures."""
        self.measurement = replace(self.measurement, **figures)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Bench:
    """Everything that turns a policy into a measured file. One for a run.

    Attributes:
        latency_percentile: as the budget says; what single options and FP32 are timed by.
        trial_timeout: seconds after which a trial failed; None: no limit.
    """

    task: Task
    graph: BaseGraph
    groups: Mapping[str, ChannelGroup]
    components: Components
    calibration: Calibration
    database: LayerDatabase
    device: Device
    evaluator: Evaluator
    timing: TimingSettings
    settings: TrialSettings
    latency_percentile: float = 50.0
    trial_timeout: float | None = None

    @property
    def no_limits(self) -> Budget:
        """For timing what no limit is meant for."""
        return Budget(latency_percentile=self.latency_percentile)

    def build(self, policy: Policy, path: Path) -> Candidate:
        """The file of a policy."""
        return self.lower(policy, self.database.compress(policy), path)

    def lower(self, policy: Policy, compressed: CompressedModel, path: Path) -> Candidate:
        """The file of a policy whose tensors are known."""
        return build(self.graph, policy, compressed, self.components.target.capabilities(), path)

    def check_files(self, *candidates: Artifact) -> None:
        """Make sure that everything that is measured is as it was written, before figures or failures are believed.

        Raises:
            DisturbedError: something else removed or changed a file.
        """
        for artifact in (self.graph.artifact, *candidates):
            artifact.check()
        self.evaluator.check_inputs()

    def footprint(self, path: Path) -> dict[str, Any]:
        """Memory and load time of a file, as figures of a measurement."""
        return self.device.footprint(path, self.evaluator.inputs("example"), self.settings.load_processes).figures

    def recoverable(self, policy: Policy, folder: Path, seed: int, progress: Progress) -> Recoverable:
        """What a recovery for finalists is given: a model and tensors of its own, which it may change."""
        task = copy.copy(self.task)
        task.model = copy.deepcopy(task.model)
        return Recoverable(
            task=task,
            graph=self.graph,
            groups=self.groups,
            components=self.components,
            calibration=self.calibration,
            database=self.database,
            policy=policy,
            compressed=copy.deepcopy(self.database.compress(policy)),
            folder=folder,
            seed=seed,
            progress=progress,
        )

    def self_check(self) -> Latency:
        """The FP32 file timed against itself: differences within the interval are none on this machine."""
        path = self.graph.path
        return self.device.latency(path, path, self.evaluator.inputs("example"), self.timing, self.no_limits)

    def baseline(self, check: Latency | None = None) -> Measurement:
        """The FP32 file on the search set; its ratio to itself is 1, whatever its check against itself found."""
        self.evaluator.keep_reference(self.graph, "calibration")
        self.evaluator.keep_reference(self.graph, "search")
        statistics = self.evaluator.reference_statistics("search")
        latency = check or self.self_check()
        example = self.evaluator.inputs("example")
        return Measurement(
            size_bytes=len(self.graph.data),
            size_ratio=1.0,
            latency_ms=latency.ms,
            latency_ratio=1.0,
            accuracy=self.evaluator.metric.value(statistics),
            accuracy_drop=0.0,
            images=len(statistics),
            latency=replace(latency, ratio=1.0, ratio_low=1.0, ratio_high=1.0),
            energy=self.device.energy(self.graph.path, example),
            **self.footprint(self.graph.path),
        )


def run_trial(
    bench: Bench, policy: Policy, budget: Budget, rivals: Callable[[], Sequence[Rival]], number: int, kind: Kind, path: Path
) -> tuple[TrialRecord, Statistics | None]:
    """Measure a policy, gate by gate; what goes wrong with the candidate is recorded, not raised.

    Args:
        rivals: what the candidate must not lose to; asked when its accuracy is measured.

    Returns:
        The record, and the metric's statistics on the whole search set where it got so far.

    Raises:
        UnreachableError: nothing can be measured any more, whatever the candidate.
        OSError: the disk is full, or read-only.
    """
    progress = _Progress()
    state, reason = _outcome(bench, policy, budget, rivals, path, progress)
    return _record(bench, policy, budget, progress, number, kind, state, reason), progress.statistics


def _outcome(
    bench: Bench, policy: Policy, budget: Budget, rivals: Callable[[], Sequence[Rival]], path: Path, progress: _Progress
) -> tuple[State, str]:
    try:
        within(bench.trial_timeout, lambda: _pass_gates(bench, policy, budget, rivals, path, progress))
    except _PrunedError as pruned:
        return "pruned", str(pruned)
    except TimeUpError as over:
        progress.given_up = True
        return "failed", too_long(bench.trial_timeout, over)
    except UnreachableError:
        raise
    except Exception as error:
        if is_unwritable(error):
            raise
        bench.check_files(*progress.files)
        return "failed", f"{type(error).__name__}: {error}"
    bench.check_files(*progress.files)
    progress.gate = "done"
    return "complete", ""


def _pass_gates(
    bench: Bench, policy: Policy, budget: Budget, rivals: Callable[[], Sequence[Rival]], path: Path, progress: _Progress
) -> None:
    with progress.at("build"):
        candidate = progress.candidate = bench.build(policy, path)
        progress.artifact = candidate.artifact
    with progress.at("size"):
        size = candidate.artifact.size_bytes
        progress.learn(size_bytes=size, size_ratio=size / len(bench.graph.data))
        _require(budget, progress.measurement, "size_bytes", "size_ratio")
    with progress.at("check"):
        bench.evaluator.check(path, bench.settings.check_images)
        nodes = bench.device.integer_nodes(path, bench.evaluator.inputs("example"))
        progress.warnings = placement_warnings(bench.graph, candidate, nodes)
    if budget.memory_bytes is not None or budget.load_ms is not None:
        with progress.at("footprint"):
            progress.learn(**bench.footprint(path))
            _require(budget, progress.measurement, "memory_bytes", "load_ms")
    with progress.at("latency"):
        inputs = bench.evaluator.inputs("example")
        latency = bench.device.latency(bench.graph.path, path, inputs, bench.timing, budget)
        progress.learn(latency=latency, latency_ms=latency.ms, latency_ratio=latency.ratio)
        progress.warnings += latency.warnings
        _require(budget, progress.measurement, "latency_ms", "latency_ratio")
    with progress.at("accuracy"):
        _measure_accuracy(bench, path, rivals(), progress)


def _require(budget: Budget, measurement: Measurement, *names: str) -> None:
    for name, excess in budget.violations(measurement).items():
        if name in names and excess > 0:
            raise _PrunedError(f"{name} {getattr(measurement, name):.4g} exceeds the budget {getattr(budget, name):.4g}")


def _measure_accuracy(bench: Bench, path: Path, rivals: Sequence[Rival], progress: _Progress) -> None:
    """Growing prefixes of the search set; each example is computed once."""
    evaluator, metric, parts = bench.evaluator, bench.evaluator.metric, list[NDArray[Any]]()
    reference = evaluator.reference_statistics("search")
    stops = _prefixes(len(reference), bench.settings)
    for start, stop in pairwise([0, *stops]):
        parts.append(evaluator.outputs(path, "search", start, stop))
        outputs = np.concatenate(parts)
        statistics = evaluator.score(outputs, "search", 0, stop)
        drop = paired_drop(metric, reference[:stop], statistics, SPREAD_RESAMPLES)
        progress.learn(accuracy=metric.value(statistics), images=stop)
        progress.learn(accuracy_drop=drop.value, accuracy_drop_spread=drop.spread)
        progress.learn(divergence=float(evaluator.divergence(outputs, "search", 0, stop).mean()))
        if stop < len(reference) and (defeat := find_defeat(metric, statistics, rivals, len(stops) - 1)):
            raise _PrunedError(str(defeat))
    progress.statistics = statistics


def _prefixes(examples: int, settings: TrialSettings) -> list[int]:
    sizes = {max(settings.minimum_subset, round(share * examples)) for share in settings.subsets}
    return [*sorted(size for size in sizes if size < examples), examples]


def _record(
    bench: Bench, policy: Policy, budget: Budget, progress: _Progress, number: int, kind: Kind, state: State, reason: str
) -> TrialRecord:
    return TrialRecord(
        number=number,
        kind=kind,
        state=state,
        gate=progress.gate,
        reason=reason,
        policy=policy,
        measurement=progress.measurement,
        violations=budget.violations(progress.measurement),
        sha256=progress.artifact.sha256 if progress.artifact else "",
        layers=layer_rows(bench.graph, progress.candidate) if progress.candidate else (),
        warnings=progress.warnings,
        seconds=progress.seconds,
        given_up=progress.given_up,
    )
