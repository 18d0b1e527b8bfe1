"""From the trials to the answer: finalists are built and measured again, the chosen file is judged on unseen data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.artifact import Artifact
from autocompress.budget import Measurement
from autocompress.candidate import Candidate, save_state
from autocompress.channels import ChannelGroup
from autocompress.device import TimingSettings
from autocompress.errors import CheckError, ModelError, RuntimeCrashError
from autocompress.evaluation import check_outputs
from autocompress.intervals import Drop, Statistics, interval, paired_drop
from autocompress.loop import Goal, Outcome, SearchSettings
from autocompress.policy import Policy, SavedPolicy
from autocompress.progress import Progress
from autocompress.record import Final, SearchResult, Status, TrialRecord
from autocompress.selection import binding_constraint, nearest, pareto_front, rank, ranked
from autocompress.task import Task
from autocompress.trial import Bench
from autocompress.twin import module_twin, twin_outputs

LONGER = 3.0
"""Finalists are timed for so many times the seconds of a trial."""

MORE_FINALISTS = 10
"""How many further candidates are tried when no finalist holds what its trial promised."""


@dataclass(frozen=True)
class Finalist:
    """A trial whose file was built and measured again; `record` None: FP32 itself."""

    record: TrialRecord | None
    policy: Policy
    artifact: Artifact
    measurement: Measurement
    candidate: Candidate | None


def conclude(
    task: Task,
    bench: Bench,
    groups: Mapping[str, ChannelGroup],
    goal: Goal,
    outcome: Outcome,
    baseline: Measurement,
    settings: SearchSettings,
    folder: Path,
    progress: Progress,
) -> SearchResult:
    """Choose, save to `best/`, and measure on the report set. The caller fills in versions, device and seconds."""
    with progress.stage("finalists"):
        finalist, reasons = _choose(task, bench, groups, goal, outcome.records, settings, folder)
    status, chosen, why = _verdict(bench, goal, outcome, finalist, baseline)
    artifact = _save(bench, chosen, folder / "best")
    with progress.stage("report set"):
        base, best, drop = _report(bench, replace(chosen, artifact=artifact), baseline)
    limit = goal.budget.accuracy_drop
    if status == "feasible" and limit is not None and drop.upper > limit:
        status = "unproven"
        why.append(f"the drop may be up to {100 * drop.upper:.2f} points (90 % bound), the budget is {100 * limit:.2f}")
    return SearchResult(
        status="interrupted" if outcome.interrupted else status,
        objective=goal.objective,
        budget=goal.budget,
        baseline=base,
        best=best,
        policy=chosen.policy,
        best_trial=chosen.record.number if chosen.record else None,
        drop=drop.value,
        drop_ci=(drop.low, drop.high),
        drop_upper=drop.upper,
        selection_gap=(chosen.measurement.accuracy or 0.0) - (best.measurement.accuracy or 0.0),
        binding_constraint=binding_constraint(outcome.records, goal.budget) if status == "infeasible" else None,
        records=outcome.records,
        front=[record.number for record in pareto_front(outcome.records)],
        seconds=0.0,
        folder=folder,
        versions={},
        device="",
        minimum_runtime={},
        reasons=[*why, *reasons],
    )


def _choose(
    task: Task,
    bench: Bench,
    groups: Mapping[str, ChannelGroup],
    goal: Goal,
    records: Sequence[TrialRecord],
    settings: SearchSettings,
    folder: Path,
) -> tuple[Finalist | None, list[str]]:
    """The best of the finalists that still hold; when none fits the budget, the nearest candidate that can be built."""
    feasible = ranked(records, goal.objective)
    order = [*feasible, *(record for record in nearest(records, goal.objective) if not record.feasible)]
    found: list[Finalist] = []
    reasons: list[str] = []
    for position, record in enumerate(order[: settings.finalists + MORE_FINALISTS]):
        if found and (position >= settings.finalists or not record.feasible):
            break
        try:
            finalist = _remeasure(task, bench, groups, record, folder)
        except (CheckError, RuntimeCrashError, ModelError) as error:
            reasons.append(f"trial {record.number} was dropped as finalist: {error}")
            continue
        if not record.feasible or _fits(goal, finalist.measurement):
            found.append(finalist)
    fitting = [finalist for finalist in found if _fits(goal, finalist.measurement)]
    pool = fitting or found
    return min(pool, key=lambda finalist: rank(goal.objective, finalist.measurement), default=None), reasons


def _fits(goal: Goal, measurement: Measurement) -> bool:
    return all(excess <= 0 for excess in goal.budget.violations(measurement).values())


def _remeasure(task: Task, bench: Bench, groups: Mapping[str, ChannelGroup], record: TrialRecord, folder: Path) -> Finalist:
    """Build the file again, compare it with the module twin, and measure size, latency and accuracy in full."""
    path = folder / "finalists" / f"t{record.number:04d}.onnx"
    candidate = bench.build(record.policy, path)
    _check_twin(task, bench, groups, candidate)
    longer = TimingSettings(bench.timing.seconds * LONGER, bench.timing.precision)
    latency = bench.device.latency(bench.graph.path, path, bench.evaluator.inputs("example"), longer)
    accuracy, drop, images = record.measurement.accuracy, record.measurement.accuracy_drop, record.measurement.images
    reference = bench.evaluator.reference_statistics("search")
    if images < len(reference):
        statistics = bench.evaluator.statistics(path, "search", 0, len(reference))
        accuracy, images = bench.evaluator.metric.value(statistics), len(statistics)
        drop = bench.evaluator.metric.value(reference) - accuracy
    measurement = Measurement(
        size_bytes=candidate.artifact.size_bytes,
        size_ratio=candidate.artifact.size_bytes / len(bench.graph.data),
        latency_ms=latency.median_ms,
        latency_ratio=latency.ratio,
        accuracy=accuracy,
        accuracy_drop=drop,
        images=images,
        latency=latency,
    )
    return Finalist(record, record.policy, candidate.artifact, measurement, candidate)


def _check_twin(task: Task, bench: Bench, groups: Mapping[str, ChannelGroup], candidate: Candidate) -> None:
    capabilities = bench.components.target.capabilities()
    twin = module_twin(bench.graph, task.model, groups, candidate.policy, candidate.compressed, capabilities)
    examples = task.sets["calibration"].inputs[: bench.settings.check_images]
    outputs = bench.device.outputs(
        candidate.artifact.path, bench.evaluator.inputs("calibration"), 0, len(examples), bench.evaluator.batch
    )
    check_outputs(outputs, twin_outputs(twin, examples), "file and module twin")


def _verdict(
    bench: Bench, goal: Goal, outcome: Outcome, finalist: Finalist | None, baseline: Measurement
) -> tuple[Status, Finalist, list[str]]:
    """Whether the finalist is the answer, or FP32 is."""
    original = Finalist(None, Policy(), Artifact.of(bench.graph.path, "onnx"), baseline, None)
    if finalist is None:
        return "not_worth_it", original, ["no candidate could be built and measured; FP32 ships"]
    if not _fits(goal, finalist.measurement):
        return "infeasible", finalist, _infeasible_reasons(goal, outcome.records)
    if _fits(goal, baseline) and rank(goal.objective, baseline) <= rank(goal.objective, finalist.measurement):
        return "not_worth_it", original, [f"nothing beats FP32 on the objective '{goal.objective}'; FP32 ships"]
    return "feasible", finalist, []


def _infeasible_reasons(goal: Goal, records: Sequence[TrialRecord]) -> list[str]:
    constraint = binding_constraint(records, goal.budget)
    if constraint is None:
        return ["no candidate fits the budget"]
    return [
        f"no candidate fits the budget: {constraint.name}={constraint.limit:g} binds; "
        f"the smallest that would have been met is {constraint.smallest_met:.4g}"
    ]


def _save(bench: Bench, chosen: Finalist, folder: Path) -> Artifact:
    """Write best/: the model, and for a candidate the policy and the state that build it again. Replaced as a whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    artifact = Artifact.of(Path(shutil.copyfile(chosen.artifact.path, partial / "model.onnx")), "onnx")
    if chosen.candidate is not None:
        save_state(chosen.candidate.compressed, partial / "state.safetensors")
        state = Artifact.of(partial / "state.safetensors", "safetensors")
        SavedPolicy(chosen.policy, bench.graph.digest, state.sha256, artifact.sha256).save(partial / "policy.yaml")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    shutil.rmtree(folder.parent / "finalists", ignore_errors=True)
    return replace(artifact, path=folder / "model.onnx")


def _report(bench: Bench, chosen: Finalist, baseline: Measurement) -> tuple[Final, Final, Drop]:
    """FP32 and the chosen file on the report set, which the search never saw."""
    evaluator = bench.evaluator
    evaluator.keep_reference(bench.graph, "report")
    reference = evaluator.reference_statistics("report")
    statistics = reference
    if chosen.record is not None:
        statistics = evaluator.statistics(chosen.artifact.path, "report", 0, len(reference))
    drop = paired_drop(evaluator.metric, reference, statistics)
    base = _final(bench, Artifact.of(bench.graph.path, "onnx"), baseline, reference, 0.0)
    return base, _final(bench, chosen.artifact, chosen.measurement, statistics, drop.value), drop


def _final(bench: Bench, artifact: Artifact, figures: Measurement, statistics: Statistics, drop: float) -> Final:
    metric = bench.evaluator.metric
    measurement = replace(figures, accuracy=metric.value(statistics), accuracy_drop=drop, images=len(statistics))
    return Final(artifact, measurement, interval(metric, statistics))
