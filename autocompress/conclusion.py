"""From the trials to the answer: finalists are built and measured again, the chosen file is judged on unseen data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Measurement
from autocompress.candidate import Candidate, save_state
from autocompress.channels import ChannelGroup
from autocompress.device import TimingSettings
from autocompress.evaluation import check_outputs
from autocompress.intervals import Drop, Statistics, interval, paired_drop
from autocompress.loop import Goal, Outcome, SearchSettings
from autocompress.policy import Policy, SavedPolicy
from autocompress.progress import Progress
from autocompress.record import BindingConstraint, Final, SearchResult, Status, TrialRecord
from autocompress.selection import binding_constraint, nearest, pareto_front, rank, ranked
from autocompress.task import Task
from autocompress.trial import Bench
from autocompress.twin import module_twin, twin_outputs

LONGER = 3.0
"""Finalists are timed for so many times the seconds of a trial."""

TWIN_IMAGES = 256
"""At most so many calibration examples are compared; few would make the agreement of an unsure model a matter of luck."""

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
        finalists, reasons = _finalists(task, bench, groups, goal, outcome.records, settings, folder)
    constraint = binding_constraint(_misses(outcome.records, finalists, goal.budget), goal.budget)
    status, chosen, why = _verdict(bench, goal, finalists, baseline, constraint)
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
        binding_constraint=constraint if status == "infeasible" else None,
        records=outcome.records,
        front=[record.number for record in pareto_front(outcome.records)],
        seconds=0.0,
        folder=folder,
        versions={},
        device="",
        minimum_runtime={},
        reasons=[*why, *reasons],
    )


def _finalists(
    task: Task,
    bench: Bench,
    groups: Mapping[str, ChannelGroup],
    goal: Goal,
    records: Sequence[TrialRecord],
    settings: SearchSettings,
    folder: Path,
) -> tuple[list[Finalist], list[str]]:
    """The best trials, built and measured again, each policy once; the nearest ones when none of them fits the budget.

    Returns:
        The finalists, and why others could not be one.
    """
    near = [record for record in nearest(records, goal.objective) if not record.feasible]
    order: dict[str, TrialRecord] = {}
    for record in (*ranked(records, goal.objective), *near):
        order.setdefault(record.policy.digest, record)
    found: list[Finalist] = []
    reasons: list[str] = []
    for record in list(order.values())[: settings.finalists + MORE_FINALISTS]:
        if _is_settled(found, record, goal, settings.finalists):
            break
        try:
            found.append(_remeasure(task, bench, groups, record, folder))
        except Exception as error:  # as in a trial: one bad candidate does not end the search
            reasons.append(f"trial {record.number} was dropped as finalist: {type(error).__name__}: {error}")
    return found, reasons


def _is_settled(found: Sequence[Finalist], upcoming: TrialRecord, goal: Goal, wanted: int) -> bool:
    """Whether measuring further candidates cannot change the answer; after the feasible trials come those that missed."""
    enough, holds = len(found) >= wanted, any(_fits(goal, finalist.measurement) for finalist in found)
    return (holds and enough) if upcoming.feasible else (holds or enough)


def _misses(records: Sequence[TrialRecord], finalists: Sequence[Finalist], budget: Budget) -> list[TrialRecord]:
    """The trials that miss the budget, by the longer measurement where there is one."""
    longer = {finalist.policy.digest: finalist.measurement for finalist in finalists}
    figures = [(record, longer.get(record.policy.digest, record.measurement)) for record in records]
    updated = [replace(record, measurement=known, violations=budget.violations(known)) for record, known in figures]
    return [record for record in updated if not record.feasible]


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
    if images < len(reference) or record.sha256 != candidate.artifact.sha256:
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
    examples = task.sets["calibration"].inputs[:TWIN_IMAGES]
    outputs = bench.device.outputs(
        candidate.artifact.path, bench.evaluator.inputs("calibration"), 0, len(examples), bench.evaluator.batch
    )
    check_outputs(outputs, twin_outputs(twin, examples), "file and module twin")


def _verdict(
    bench: Bench, goal: Goal, finalists: Sequence[Finalist], baseline: Measurement, constraint: BindingConstraint | None
) -> tuple[Status, Finalist, list[str]]:
    """Whether one of the finalists is the answer, or FP32 is."""
    original = Finalist(None, Policy(), Artifact.of(bench.graph.path, "onnx"), baseline, None)
    if not finalists:
        return "not_worth_it", original, ["no candidate could be built and measured; FP32 ships"]
    best = min(finalists, key=lambda finalist: _misses_by(goal, finalist.measurement))
    if not _fits(goal, best.measurement) and not _fits(goal, baseline):
        return "infeasible", best, [_infeasible_reason(constraint)]
    if not _fits(goal, best.measurement):
        return "not_worth_it", original, [f"{_infeasible_reason(constraint)}; FP32 does, and ships"]
    if _fits(goal, baseline) and rank(goal.objective, baseline) <= rank(goal.objective, best.measurement):
        return "not_worth_it", original, [f"nothing beats FP32 on the objective '{goal.objective}'; FP32 ships"]
    return "feasible", best, []


def _misses_by(goal: Goal, measurement: Measurement) -> tuple[float, ...]:
    """Sort key: within the budget first, those by the objective; then what misses it by least."""
    excess = sum(max(0.0, violation) for violation in goal.budget.violations(measurement).values())
    return (excess, *rank(goal.objective, measurement))


def _infeasible_reason(constraint: BindingConstraint | None) -> str:
    if constraint is None:
        return "no candidate fits the budget"
    return (
        f"no candidate fits the budget: {constraint.name}={constraint.limit:g} binds; "
        f"the smallest that would have been met is {constraint.smallest_met:.4g}"
    )


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
