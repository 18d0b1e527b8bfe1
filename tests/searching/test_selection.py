"""Which trial is the answer, on made-up figures and against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from autocompress import Budget, Measurement, Policy, TrialRecord
from autocompress.record import BindingConstraint, Gate, Objective, State
from autocompress.searching.selection import binding_constraint, nearest, pareto_front, rank, ranked

OBJECTIVES: tuple[Objective, ...] = ("accuracy", "latency", "size", "pareto")
NO_BUDGET = Budget()
_numbers = count()


def figures(accuracy: float = 0.9, latency: float | None = 0.5, size: float = 0.5) -> Measurement:
    drop = None if accuracy is None else 0.95 - accuracy
    return Measurement(int(1000 * size), size, latency and 2 * latency, latency, accuracy, drop)


def trial(measurement: Measurement, budget: Budget = NO_BUDGET, state: State = "complete", sha256: str = "ab") -> TrialRecord:
    gate: Gate = "done" if state == "complete" else "latency"
    violations = budget.violations(measurement)
    return TrialRecord(next(_numbers), "trial", state, gate, "", Policy(), measurement, violations, sha256)


def at_size_gate(size: float, budget: Budget) -> TrialRecord:
    return trial(Measurement(int(1000 * size), size), budget, "pruned")


def random_trials(budget: Budget, amount: int, seed: int) -> list[TrialRecord]:
    draws = np.random.default_rng(seed).integers(1, 10, (amount, 3)) / 10  # coarse, so that ties occur
    return [trial(figures(*(float(x) for x in row)), budget) for row in draws]


@pytest.mark.parametrize(
    ("objective", "better", "worse"),
    [
        ("accuracy", figures(accuracy=0.91, latency=0.9, size=0.9), figures(accuracy=0.9, latency=0.1, size=0.1)),
        ("accuracy", figures(latency=0.4, size=0.9), figures(latency=0.5, size=0.1)),
        ("accuracy", figures(size=0.4), figures(size=0.5)),
        ("latency", figures(accuracy=0.1, latency=0.4), figures(accuracy=0.9, latency=0.41)),
        ("latency", figures(accuracy=0.9, size=0.9), figures(accuracy=0.8, size=0.1)),
        ("latency", figures(size=0.4), figures(size=0.5)),
        ("size", figures(accuracy=0.1, size=0.4), figures(accuracy=0.9, size=0.41)),
        ("size", figures(accuracy=0.9, latency=0.9), figures(accuracy=0.8, latency=0.1)),
        ("size", figures(latency=0.4), figures(latency=0.5)),
        ("pareto", figures(latency=0.2, size=0.2), figures(latency=0.4, size=0.11)),
        ("pareto", figures(accuracy=0.9, latency=0.5), figures(accuracy=0.5, latency=0.4)),
    ],
)
def test_rank_puts_the_better_first(objective: Objective, better: Measurement, worse: Measurement) -> None:
    assert rank(objective, better) < rank(objective, worse)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rank_is_monotone_in_each_figure(objective: Objective) -> None:
    base = figures()
    for improved in (figures(accuracy=0.92), figures(latency=0.45), figures(size=0.45)):
        assert rank(objective, improved) < rank(objective, base)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ranked_lists_the_feasible_best_first(objective: Objective) -> None:
    budget = Budget(size_ratio=0.6, accuracy_drop=0.3)
    records = random_trials(budget, 60, seed=1)
    found = ranked(records, objective)
    expected = {r.number for r in records if r.measurement.size_ratio <= 0.6 and r.measurement.accuracy >= 0.65}  # type: ignore[operator]
    assert {record.number for record in found} == expected
    assert len(expected) > 5
    keys = [rank(objective, record.measurement) for record in found]
    assert keys == sorted(keys)


def test_only_a_complete_trial_is_feasible() -> None:
    budget = Budget(size_ratio=0.6)
    assert ranked([at_size_gate(0.3, budget), trial(figures(size=0.3), budget, "failed")], "accuracy") == []


def test_nearest_misses_the_budget_by_least() -> None:
    budget = Budget(size_ratio=0.2, latency_ratio=0.4)
    far, near, both = (trial(figures(latency=x, size=y), budget) for x, y in [(0.3, 0.3), (0.44, 0.1), (0.43, 0.22)])
    assert nearest([far, near, both], "accuracy") == [near, both, far]


def test_nearest_prefers_the_trial_that_is_known_better() -> None:
    budget = Budget(size_ratio=0.2)
    short, full = at_size_gate(0.3, budget), trial(figures(size=0.3, latency=1.5), budget)
    for objective in OBJECTIVES:
        assert nearest([short, full], objective) == [full, short]


def test_nearest_needs_a_file() -> None:
    budget = Budget(size_ratio=0.2)
    assert nearest([trial(figures(), budget, "failed", sha256="")], "accuracy") == []


def binding(records: list[TrialRecord], **limits: float) -> BindingConstraint | None:
    budget = Budget(**limits)
    return binding_constraint([replace(r, violations=budget.violations(r.measurement)) for r in records], budget)


def test_single_limit_binds_at_the_smallest_that_was_reached() -> None:
    records = [trial(figures(size=size)) for size in (0.4, 0.25, 0.3)]
    assert binding(records, size_ratio=0.2) == BindingConstraint("size_ratio", 0.2, 0.25)


def test_limit_that_must_give_least_binds() -> None:
    records = [trial(figures(accuracy=0.90, size=0.15)), trial(figures(accuracy=0.945, size=0.3))]
    assert binding(records, size_ratio=0.2, accuracy_drop=0.01) == BindingConstraint("size_ratio", 0.2, 0.3)
    found = binding(records, size_ratio=0.2, accuracy_drop=0.04)
    assert found is not None
    assert (found.name, found.limit) == ("accuracy_drop", 0.04)
    assert found.smallest_met == pytest.approx(0.05)


def test_what_another_limit_forbids_does_not_count() -> None:
    records = [trial(figures(accuracy=0.5, size=0.21)), trial(figures(size=0.4))]
    assert binding(records, size_ratio=0.2, accuracy_drop=0.1) == BindingConstraint("size_ratio", 0.2, 0.4)


def test_gate_that_was_not_reached_does_not_count_against_a_trial() -> None:
    records = [at_size_gate(0.3, NO_BUDGET), trial(figures(latency=0.9, size=0.1))]
    assert binding(records, size_ratio=0.2, latency_ratio=0.3) == BindingConstraint("size_ratio", 0.2, 0.3)


def test_file_that_failed_its_check_is_no_candidate() -> None:
    broken = trial(Measurement(100, 0.1), state="failed")
    assert binding([broken, trial(figures(size=0.3))], size_ratio=0.2) == BindingConstraint("size_ratio", 0.2, 0.3)
    assert binding([broken], size_ratio=0.05) is None


def test_drop_of_zero_can_bind() -> None:
    found = binding([trial(figures(accuracy=0.94))], accuracy_drop=0.0)
    assert found is not None
    assert (found.name, found.limit) == ("accuracy_drop", 0.0)
    assert found.smallest_met == pytest.approx(0.01)


def test_two_limits_of_one_gate_name_the_one_that_is_missed_most() -> None:
    records = [trial(figures(size=size)) for size in (0.5, 0.3)]
    assert binding(records, size_bytes=200, size_ratio=0.1) == BindingConstraint("size_ratio", 0.1, 0.3)
    assert binding(records, size_bytes=100, size_ratio=0.2) == BindingConstraint("size_bytes", 100, 300)


def test_nothing_binds_when_something_fits() -> None:
    records = [trial(figures(size=0.1)), trial(figures(size=0.5))]
    assert binding(records, size_ratio=0.2) is None
    assert binding(records) is None
    assert binding([], size_ratio=0.2) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_named_budget_would_have_been_met_and_no_smaller_one(seed: int) -> None:
    limits = {"size_ratio": 0.25, "latency_ratio": 0.35, "accuracy_drop": 0.12}
    impossible = [record for record in random_trials(Budget(**limits), 60, seed) if not record.feasible]
    assert any(misses(record) == 1 for record in impossible)
    found = binding(impossible, **limits)
    assert found is not None
    assert found.limit == limits[found.name]
    assert any_fits(impossible, {**limits, found.name: found.smallest_met})
    assert not any_fits(impossible, {**limits, found.name: found.smallest_met - 1e-9})


def misses(record: TrialRecord) -> int:
    """How many limits the trial misses."""
    return sum(excess > 0 for excess in record.violations.values())


def any_fits(records: list[TrialRecord], limits: dict[str, Any]) -> bool:
    return any(all(getattr(r.measurement, name) <= limit for name, limit in limits.items()) for r in records)


@pytest.mark.parametrize("seed", range(5))
def test_pareto_front_agrees_with_brute_force(seed: int) -> None:
    records = random_trials(NO_BUDGET, 50, seed)
    points = np.array([[-r.measurement.accuracy, r.measurement.latency_ratio, r.measurement.size_ratio] for r in records])  # type: ignore[operator]
    beaten = [any((p <= q).all() and (p < q).any() for p in points) for q in points]
    front = pareto_front(records)
    assert [r.number for r in front] == [r.number for r, b in zip(records, beaten, strict=True) if not b]
    assert 0 < len(front) < len(records)


def test_pareto_front_takes_complete_trials_only_and_keeps_ties() -> None:
    budget = Budget(size_ratio=0.1)
    best = trial(figures(0.9, 0.1, 0.1))
    again = trial(figures(0.9, 0.1, 0.1))
    records = [best, at_size_gate(0.01, budget), trial(figures(0.99, 0.05, 0.05), state="failed"), again]
    assert pareto_front(records) == [best, again]
