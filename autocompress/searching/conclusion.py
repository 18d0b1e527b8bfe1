"""From the trials to the answer: finalists are built and measured again, the chosen file is judged on unseen data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.accuracy.changes import Changes, find_changes
from autocompress.accuracy.host_accuracy import host_accuracy
from autocompress.accuracy.intervals import Drop, Statistics, interval, paired_drop
from autocompress.accuracy.significance import paired_p
from autocompress.artifact import Artifact
from autocompress.budget import Budget, Measurement
from autocompress.building.candidate import save_state
from autocompress.guarding.whole_file import begun_folder
from autocompress.policy import Policy, SavedPolicy
from autocompress.quality import Quality
from autocompress.record import BindingConstraint, Final, SearchResult, Status, TrialRecord
from autocompress.searching.finalists import Finalist, find_finalists, fits
from autocompress.searching.loop import Goal, Outcome, SearchRun
from autocompress.searching.overhead import overhead_notes
from autocompress.searching.selection import binding_constraint, pareto_front, rank
from autocompress.trials.trial import Bench


def conclude(run: SearchRun, outcome: Outcome, baseline: Measurement) -> SearchResult:
    """Choose, begin `best/`, and measure on the report set. The caller fills in versions, device and seconds, and delivers."""
    bench, goal = run.bench, run.goal
    with run.progress.stage("finalists"):
        finalists, reasons = find_finalists(run, outcome.records, outcome.deadline)
    constraint = binding_constraint(_misses(outcome.records, finalists, goal.budget), goal.budget)
    status, chosen, why = _verdict(bench, goal, finalists, baseline, constraint)
    artifact = _save(bench, chosen, run.folder / "best")
    with run.progress.stage("report set"):
        report = _report(bench, replace(chosen, artifact=artifact), baseline)
    best, drop = report.best, report.drop
    limit, quality = goal.budget.accuracy_drop, Quality.of(bench.components.metric)
    if status == "feasible" and limit is not None and drop.upper > limit:
        status = "unproven"
        upper, allowed = quality.difference(drop.upper, digits=2), quality.difference(limit, digits=2)
        why.append(f"the drop may be up to {upper} (90 % bound), the budget is {allowed}")
    return SearchResult(
        status="interrupted" if outcome.interrupted else status,
        objective=goal.objective,
        budget=goal.budget,
        baseline=report.baseline,
        best=best,
        policy=chosen.policy,
        best_trial=chosen.record.number if chosen.record else None,
        drop=drop.value,
        drop_ci=(drop.low, drop.high),
        drop_upper=drop.upper,
        drop_p=report.p,
        changes=report.changes,
        selection_gap=(chosen.measurement.accuracy or 0.0) - (best.measurement.accuracy or 0.0),
        binding_constraint=constraint if status == "infeasible" else None,
        records=outcome.records,
        front=[record.number for record in pareto_front(outcome.records)],
        seconds=0.0,
        folder=run.folder,
        versions={},
        device="",
        minimum_runtime={},
        reasons=[*why, *reasons, *overhead_notes(outcome.records), outcome.ended],
        quality=quality,
        host_accuracy=host_accuracy(bench.evaluator, bench.components.target, bench.graph, artifact.path, "report"),
    )


def _misses(records: Sequence[TrialRecord], finalists: Sequence[Finalist], budget: Budget) -> list[TrialRecord]:
    """The trials that miss the budget, by the longer measurement where there is one."""
    longer = {finalist.policy.digest: finalist.measurement for finalist in finalists}
    figures = [(record, longer.get(record.policy.digest, record.measurement)) for record in records]
    updated = [replace(record, measurement=known, violations=budget.violations(known)) for record, known in figures]
    return [record for record in updated if not record.feasible]


def _verdict(
    bench: Bench, goal: Goal, finalists: Sequence[Finalist], baseline: Measurement, constraint: BindingConstraint | None
) -> tuple[Status, Finalist, list[str]]:
    """Whether one of the finalists is the answer, or FP32 is."""
    original = Finalist(None, Policy(), Artifact.of(bench.graph.path, "onnx"), baseline, None)
    if not finalists:
        return "not_worth_it", original, ["no candidate could be built and measured; FP32 ships"]
    best = min(finalists, key=lambda finalist: _misses_by(goal, finalist.measurement))
    if not fits(goal, best.measurement):
        close = _close_calls(goal, best.measurement)
        why = close or [_infeasible_reason(constraint)]
        if fits(goal, baseline):
            return "not_worth_it", original, [f"{why[0]}; FP32 is within it for sure, and ships"]
        return ("unproven" if close else "infeasible"), best, why
    equal = best.policy == Policy() or rank(goal.objective, baseline) <= rank(goal.objective, best.measurement)
    if fits(goal, baseline) and equal:
        return "not_worth_it", original, [f"nothing beats FP32 on the objective '{goal.objective}'; FP32 ships"]
    return "feasible", best, []


def _close_calls(goal: Goal, measurement: Measurement) -> list[str]:
    """The limits that a measurement keeps but not with its whole interval; empty when it misses a limit anyway."""
    likely, sure = (goal.budget.violations(figures) for figures in (measurement, measurement.at_most))
    if any(excess > 0 for excess in likely.values()):
        return []
    limits = goal.budget.limits()
    return [
        f"{name} may be up to {getattr(measurement.at_most, name):.4g} (95 % interval), the budget is {limits[name]:.4g}"
        for name, excess in sure.items()
        if excess > 0
    ]


def _misses_by(goal: Goal, measurement: Measurement) -> tuple[float, ...]:
    """Sort key: within the budget for sure first, those by the objective; then what misses it by least."""
    excess = sum(max(0.0, violation) for violation in goal.budget.violations(measurement.at_most).values())
    return (excess, *rank(goal.objective, measurement))


def _infeasible_reason(constraint: BindingConstraint | None) -> str:
    if constraint is None:
        return "no candidate fits the budget"
    return (
        f"no candidate fits the budget: {constraint.name}={constraint.limit:g} binds; "
        f"the smallest that would have been met is {constraint.smallest_met:.4g}"
    )


def _save(bench: Bench, chosen: Finalist, folder: Path) -> Artifact:
    """Begin best/: the model, and for a candidate the policy and the state that build it again. `deliver` puts it in place.

    Raises:
        DisturbedError: the file is not the one that was measured.
    """
    partial = begun_folder(folder)
    chosen.artifact.check()
    artifact = Artifact.of(Path(shutil.copyfile(chosen.artifact.path, partial / "model.onnx")), "onnx")
    if chosen.candidate is not None:
        save_state(chosen.candidate.compressed, partial / "state.safetensors")
        state = Artifact.of(partial / "state.safetensors", "safetensors")
        SavedPolicy(chosen.policy, bench.graph.digest, state.sha256, artifact.sha256).save(partial / "policy.yaml")
    shutil.rmtree(folder.parent / "finalists", ignore_errors=True)
    return artifact


@dataclass(frozen=True)
class _Report:
    """FP32 and the chosen file on the report set, and how they differ there."""

    baseline: Final
    best: Final
    drop: Drop
    p: float
    changes: Changes


def _report(bench: Bench, chosen: Finalist, baseline: Measurement) -> _Report:
    """Run both files on the report set, which the search never saw."""
    evaluator, metric = bench.evaluator, bench.evaluator.metric
    evaluator.keep_reference(bench.graph, "report")
    fp32 = outputs = evaluator.reference["report"]
    if chosen.record is not None:
        outputs = evaluator.outputs(chosen.artifact.path, "report", 0, len(fp32))
    reference, statistics = (evaluator.score(found, "report", 0, len(fp32)) for found in (fp32, outputs))
    drop = paired_drop(metric, reference, statistics)
    divergence = float(evaluator.divergence(outputs, "report", 0, len(fp32)).mean())
    base = _final(bench, Artifact.of(bench.graph.path, "onnx"), replace(baseline, divergence=0.0), reference, 0.0)
    best = _final(bench, chosen.artifact, replace(chosen.measurement, divergence=divergence), statistics, drop.value)
    return _Report(base, best, drop, paired_p(metric, reference, statistics), find_changes(evaluator, outputs, "report"))


def _final(bench: Bench, artifact: Artifact, figures: Measurement, statistics: Statistics, drop: float) -> Final:
    metric = bench.evaluator.metric
    measurement = replace(figures, accuracy=metric.value(statistics), accuracy_drop=drop, images=len(statistics))
    return Final(artifact, measurement, interval(metric, statistics))
