"""The best trials, built and measured again before one is chosen, and made better where a recovery can."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from autocompress.accuracy.evaluation import check_outputs
from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.building.candidate import Candidate
from autocompress.building.recovery import Recoverable
from autocompress.building.twin import module_twin, twin_outputs
from autocompress.components import Recovery
from autocompress.errors import PluginError, RuntimeCrashError, UnreachableError
from autocompress.guarding.disk import is_unwritable
from autocompress.guarding.plugin_call import calling, described
from autocompress.guarding.time_limit import TimeUpError, too_long, within
from autocompress.policy import Policy
from autocompress.record import TrialRecord
from autocompress.searching.loop import Goal, SearchRun
from autocompress.searching.recovery_time import in_turn
from autocompress.searching.selection import nearest, rank, ranked
from autocompress.tensors.compress import CompressedModel
from autocompress.trials.trial import Bench

LONGER = 3.0
"""Finalists are timed for so many times the seconds of a trial, each, until they are known so many times better."""

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


def find_finalists(
    run: SearchRun, records: Sequence[TrialRecord], deadline: float = math.inf
) -> tuple[list[Finalist], list[str]]:
    """The best trials, built and measured again, then the same and hopeful ones after recovery.

    Those that are compared are timed together: all in the same interleaved rounds, once more when some were recovered.

    Args:
        deadline: `time.monotonic()` after which nothing is recovered.

    Returns:
        The finalists, and why others could not be one.
    """
    found: list[Finalist] = []
    reasons: list[str] = []
    upcoming = deque(_in_order(records, run.goal)[: run.settings.finalists + MORE_FINALISTS])
    while upcoming and not _is_settled(found, upcoming[0], run.goal, run.settings.finalists):
        found += _timed(run, _next_batch(run, upcoming, reasons), reasons)
    recovered = _all_recovered(run, _hopeful(run, records, found), deadline, reasons)
    return (_timed(run, [*found, *recovered], reasons) if recovered else found), reasons


def _next_batch(run: SearchRun, upcoming: deque[TrialRecord], reasons: list[str]) -> list[Finalist]:
    """As many as are wanted, built and checked; those that missed the budget are no company for those that did not."""
    batch: list[Finalist] = []
    feasible = upcoming[0].feasible
    while upcoming and upcoming[0].feasible == feasible and len(batch) < run.settings.finalists:
        batch += _tried(run, upcoming.popleft(), reasons, "dropped as finalist", _rebuilt)
    return batch


def _tried(
    run: SearchRun, record: TrialRecord, reasons: list[str], failure: str, build: Callable[[SearchRun, TrialRecord], Finalist]
) -> list[Finalist]:
    """As in a trial, one bad candidate does not end the search."""
    try:
        return [build(run, record)]
    except UnreachableError:
        raise
    except TimeUpError as over:
        reasons.append(f"trial {record.number} was {failure}: {too_long(run.bench.trial_timeout, over)}")
        return []
    except Exception as error:
        if is_unwritable(error):
            raise
        run.bench.check_files()
        reasons.append(f"trial {record.number} was {failure}: {type(error).__name__}: {error}")
        return []


def _timed(run: SearchRun, finalists: Sequence[Finalist], reasons: list[str]) -> list[Finalist]:
    """The finalists with their latencies from one run; when that crashes, from one run each, without those that crash alone."""
    if not finalists:
        return []
    bench = run.bench
    longer = replace(bench.timing, seconds=bench.timing.seconds * LONGER, precision=bench.timing.precision / LONGER)
    paths = [finalist.artifact.path for finalist in finalists]
    try:
        found = bench.device.latencies(bench.graph.path, paths, bench.evaluator.inputs("example"), longer, run.goal.budget)
    except RuntimeCrashError as error:
        bench.check_files(*[finalist.artifact for finalist in finalists])
        if len(finalists) > 1:
            return [alone for finalist in finalists for alone in _timed(run, [finalist], reasons)]
        reasons.append(f"{paths[0].stem} was dropped as finalist: {error}")
        return []
    return [_with_latency(finalist, latency) for finalist, latency in zip(finalists, found, strict=True)]


def _with_latency(finalist: Finalist, latency: Latency) -> Finalist:
    known = replace(finalist.measurement, latency=latency, latency_ms=latency.ms, latency_ratio=latency.ratio)
    return replace(finalist, measurement=known)


def _rebuilt(run: SearchRun, record: TrialRecord) -> Finalist:
    def rebuilt() -> Finalist:
        return _checked(run, record, run.bench.database.compress(record.policy), f"t{record.number:04d}")

    return within(run.bench.trial_timeout, rebuilt)


def _hopeful(run: SearchRun, records: Sequence[TrialRecord], found: Sequence[Finalist]) -> list[TrialRecord]:
    """Trials that a recovery may turn into the answer: all limits but that of accuracy hold, and that one nearly."""
    if not run.bench.components.slow_recoveries:
        return []
    known = {finalist.policy.digest: finalist.measurement for finalist in found}
    near = [record for record in records if could_recover(record, run.goal.budget, run.settings.recoverable_drop)]
    near = list({record.policy.digest: record for record in near}.values())
    near.sort(key=lambda record: rank(run.goal.objective, known.get(record.policy.digest, record.measurement)))
    return near[: run.settings.finalists]


def _all_recovered(run: SearchRun, hopeful: Sequence[TrialRecord], deadline: float, reasons: list[str]) -> list[Finalist]:
    """Those that could be recovered. Each has an even share of the time left; what one does not need is for those after it."""
    found: list[Finalist] = []
    for place, record in enumerate(hopeful):
        now = time.monotonic()
        end = now + (deadline - now) / (len(hopeful) - place)
        if end > now:
            found += _tried(run, record, reasons, "not recovered", partial(_recovered, end=end, reasons=reasons))
        else:
            reasons.append(f"trial {record.number} was not recovered: search.timeout={run.settings.timeout} seconds are over")
    return found


def _recovered(run: SearchRun, record: TrialRecord, end: float, reasons: list[str]) -> Finalist:
    """The candidate after the recoveries for finalists, in their order; those that the time is not enough for are left out."""
    bench, left_out = run.bench, [recovery.name for recovery in run.bench.components.slow_recoveries]
    candidate = bench.recoverable(record.policy, run.folder / "finalists", run.settings.seed, run.progress)
    for recovery, seconds in in_turn(bench.components.slow_recoveries, end):
        limit = f" (at most {seconds:.0f} s)" if math.isfinite(seconds) else ""
        with run.progress.stage(f"trial {record.number}: {recovery.name}{limit}"):
            candidate = replace(candidate, compressed=_given_back(run, recovery, replace(candidate, seconds=seconds)))
        left_out.remove(recovery.name)
    if left_out:
        reasons.append(f"trial {record.number} was recovered without {', '.join(left_out)}: no time was left")
    return _checked(run, record, candidate.compressed, f"t{record.number:04d}-recovered")


def _given_back(run: SearchRun, recovery: Recovery, candidate: Recoverable) -> CompressedModel:
    """What one recovery gives back; one with a time limit that does not keep to it by more than a trial's is ended."""
    limit = run.bench.trial_timeout
    allowed = limit + candidate.seconds if limit is not None and math.isfinite(candidate.seconds) else None
    with calling(recovery, "recover"):
        found = within(allowed, lambda: recovery.recover(candidate))
    if not isinstance(found, CompressedModel):
        raise PluginError(f"{described(recovery)}: recover gives {type(found).__name__}; expected a CompressedModel")
    return found


def _checked(run: SearchRun, record: TrialRecord, compressed: CompressedModel, name: str) -> Finalist:
    """Build the file, compare it with the module twin, and measure all but its latency."""
    bench = run.bench
    candidate = bench.lower(record.policy, compressed, run.folder / "finalists" / f"{name}.onnx")
    _check_twin(bench, candidate)
    size = candidate.artifact.size_bytes
    path = candidate.artifact.path
    known = replace(_quality(run, record, candidate), size_bytes=size, size_ratio=size / len(bench.graph.data))
    energy = bench.device.energy(path, bench.evaluator.inputs("example"))
    measurement = replace(known, energy=energy, **bench.footprint(path))
    return Finalist(record, record.policy, candidate.artifact, measurement, candidate)


def _quality(run: SearchRun, record: TrialRecord, candidate: Candidate) -> Measurement:
    """Accuracy, drop and divergence on the whole search set; known when the trial measured these very bytes in full."""
    evaluator, known = run.bench.evaluator, record.measurement
    reference = evaluator.reference_statistics("search")
    count = len(reference)
    if known.images == count and record.sha256 == candidate.artifact.sha256:
        return known
    outputs = evaluator.outputs(candidate.artifact.path, "search", 0, count)
    accuracy = evaluator.metric.value(evaluator.score(outputs, "search", 0, count))
    return Measurement(
        accuracy=accuracy,
        accuracy_drop=evaluator.metric.value(reference) - accuracy,
        images=count,
        divergence=float(evaluator.divergence(outputs, "search", 0, count).mean()),
    )


def could_recover(record: TrialRecord, budget: Budget, recoverable_drop: float) -> bool:
    """Whether only accuracy is missing, and by no more than recovery may bring back."""
    drop = record.measurement.accuracy_drop
    others = [excess for name, excess in record.violations.items() if name != "accuracy_drop"]
    return (
        record.measurement.latency_ms is not None
        and all(excess <= 0 for excess in others)
        and drop is not None
        and (drop <= (budget.accuracy_drop or 0.0) + recoverable_drop)
    )


def fits(goal: Goal, measurement: Measurement) -> bool:
    """Whether a measurement keeps every limit for sure: latencies by the upper ends of their intervals."""
    return all(excess <= 0 for excess in goal.budget.violations(measurement.at_most).values())


def _in_order(records: Sequence[TrialRecord], goal: Goal) -> list[TrialRecord]:
    """Each policy once, the best first; after the feasible ones those that miss the budget by least."""
    near = [record for record in nearest(records, goal.objective) if not record.feasible]
    order: dict[str, TrialRecord] = {}
    for record in (*ranked(records, goal.objective), *near):
        order.setdefault(record.policy.digest, record)
    return list(order.values())


def _is_settled(found: Sequence[Finalist], upcoming: TrialRecord, goal: Goal, wanted: int) -> bool:
    """Whether measuring further candidates cannot change the answer; after the feasible trials come those that missed."""
    holds = any(fits(goal, finalist.measurement) for finalist in found)
    return holds or (not upcoming.feasible and len(found) >= wanted)


def _check_twin(bench: Bench, candidate: Candidate) -> None:
    capabilities = bench.components.target.capabilities()
    twin = module_twin(bench.graph, bench.task.model, bench.groups, candidate.policy, candidate.compressed, capabilities)
    examples = bench.task.sets["calibration"].inputs[:TWIN_IMAGES]
    outputs = bench.evaluator.outputs(candidate.artifact.path, "calibration", 0, len(examples))
    class_scores = bench.components.metric.class_scores
    check_outputs(outputs, twin_outputs(twin, examples), "file and module twin", class_scores=class_scores)
