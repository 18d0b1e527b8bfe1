"""Which trial is the answer, and if none is, what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autocompress.budget import Budget, Measurement
from autocompress.record import BindingConstraint, Objective, TrialRecord

KNEE = 8.0
"""One per cent less accuracy is worth as much as eight per cent of size or latency."""

RESOLUTION_DIGITS = 2
"""A trial times for a second or two: closer ratios cannot be told apart, so accuracy decides, then size."""


def rank(objective: Objective, figures: Measurement) -> tuple[float, ...]:
    """Sort key of a complete measurement: lower is better; latencies within a hundredth of FP32's are a tie.

    For `pareto` the answer is the knee: the point with the smallest product of ratios, where each share of FP32's accuracy that
    is lost counts `KNEE` times; a metric whose FP32 value is 0 counts in its own unit.
    """
    accuracy, latency, size = figures.accuracy or 0.0, figures.latency_ratio or 1.0, figures.size_ratio or 1.0
    drop = figures.accuracy_drop or 0.0
    keys = {
        "accuracy": (-accuracy, latency, size),
        "latency": (round(latency, RESOLUTION_DIGITS), -accuracy, size),
        "size": (size, -accuracy, latency),
        "pareto": (math.log(latency * size) + KNEE * drop / (abs(accuracy + drop) or 1.0),),
    }
    return keys[objective]


def mark(objective: Objective, figures: Measurement) -> tuple[float, ...]:
    """What a search tries to lower, no finer than it can be told apart: a gain below that is none.

    For `pareto` all three costs, in hundredths of FP32's latency and size and thousandths of its accuracy: a policy that no
    other's mark is as good as makes the hypervolume of the front larger.
    """
    first = rank(objective, figures)[:1]
    latency, size = figures.latency_ratio or 1.0, figures.size_ratio or 1.0
    drop = figures.accuracy_drop or 0.0
    share = drop / (abs((figures.accuracy or 0.0) + drop) or 1.0)
    return (round(latency, RESOLUTION_DIGITS), round(size, 2), round(share, 3)) if objective == "pareto" else first


def ranked(records: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Feasible trials, best first."""
    return sorted((r for r in records if r.feasible), key=lambda record: rank(objective, record.measurement))


def nearest(records: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Trials with a file, those that miss the budget by least first; a trial with more figures known wins a tie."""
    built = [record for record in records if record.sha256]
    return sorted(built, key=lambda r: (r.violation, r.state != "complete", rank(objective, r.measurement)))


def binding_constraint(records: Sequence[TrialRecord], budget: Budget) -> BindingConstraint | None:
    """The limit that had to give least to let a candidate through, with the smallest value reached within the others.

    A figure that a trial did not get to does not count against it: it was stopped by another limit. When no single limit
    can let a candidate through, it is the one that the nearest candidate misses most. None: a candidate fits, or there is none.
    """
    candidates = [record for record in records if record.state != "failed"]
    options = []
    for name, limit in budget.limits().items():
        others = [r for r in candidates if _value(r, name) is not None and _within(r, budget, except_for=name)]
        reached = min((value for r in others if (value := _value(r, name)) is not None), default=None)
        if reached is not None and reached <= limit:
            return None
        if reached is not None:
            options.append((reached / limit if limit else float("inf"), BindingConstraint(name, limit, reached)))
    return min(options, key=lambda option: option[0])[1] if options else _most_exceeded(candidates, budget)


def _most_exceeded(records: Sequence[TrialRecord], budget: Budget) -> BindingConstraint | None:
    closest = min((r for r in records if r.violation > 0), key=lambda record: record.violation, default=None)
    if closest is None:
        return None
    name = max(closest.violations, key=lambda name: closest.violations[name])
    return BindingConstraint(name, budget.limits()[name], _value(closest, name) or 0.0)


def _value(record: TrialRecord, name: str) -> float | None:
    value: float | None = getattr(record.measurement, name)
    return value


def _within(record: TrialRecord, budget: Budget, except_for: str) -> bool:
    violations = budget.violations(record.measurement)
    return all(excess <= 0 for name, excess in violations.items() if name != except_for)


def pareto_front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Complete trials that no other complete trial beats in accuracy, latency and size at once."""
    front: list[TrialRecord] = []
    for record in records:
        if record.state == "complete":
            front = extended_front(front, record)
    return front


def extended_front(front: Sequence[TrialRecord], record: TrialRecord) -> list[TrialRecord]:
    """The front after one more complete trial."""
    if any(_dominates(other, record) for other in front):
        return list(front)
    return [*(other for other in front if not _dominates(record, other)), record]


def _dominates(one: TrialRecord, other: TrialRecord) -> bool:
    pairs = list(zip(_costs(one.measurement), _costs(other.measurement), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _costs(figures: Measurement) -> tuple[float, float, float]:
    return (-(figures.accuracy or 0.0), figures.latency_ratio or 0.0, figures.size_ratio or 0.0)
