"""Which measurements of another budget tell something under this one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autocompress import Budget, LayerPolicy, Measurement, Policy, TrialRecord
from autocompress.record import Kind, State
from autocompress.studies.sisters import judged_again

INT8, INT4 = Policy({"head": LayerPolicy("int8", 8)}), Policy({"head": LayerPolicy("int4", 4)})
WHOLE = Measurement(300, 0.3, 0.5, 0.5, 0.88, 0.02, 400, accuracy_drop_spread=0.01)
SIZE = Measurement(600, 0.6)
PART = Measurement(300, 0.3, 0.5, 0.5, 0.7, 0.2, 100, accuracy_drop_spread=0.03)


def record(
    measurement: Measurement, state: State = "complete", policy: Policy = INT8, kind: Kind = "trial", number: int = 7
) -> TrialRecord:
    old = Budget(size_ratio=0.4, accuracy_drop=0.01).violations(measurement)
    return TrialRecord(number, kind, state, "done", "an old reason", policy, measurement, old, "ab", seconds={"build": 1.0})


@pytest.mark.parametrize(
    ("measurement", "budget", "expected"),
    [
        (SIZE, {"size_ratio": 0.59}, "size_ratio over the budget; measured as trial 7 of other"),
        (SIZE, {"size_ratio": 0.6}, None),
        (SIZE, {"latency_ratio": 0.1, "accuracy_drop": 0.0}, None),
        (SIZE, {}, None),
        (PART, {"accuracy_drop": 0.1}, "accuracy_drop over the budget; measured as trial 7 of other"),
        (PART, {"accuracy_drop": 0.12}, None),  # 0.2 on a hundred examples, give or take three times 0.03
        (PART, {"accuracy_drop": 0.12, "latency_ratio": 0.4}, "latency_ratio over the budget; measured as trial 7 of other"),
        (
            PART,
            {"accuracy_drop": 0.05, "size_bytes": 250},
            "size_bytes and accuracy_drop over the budget; measured as trial 7 of other",
        ),
    ],
)
def test_one_that_was_stopped_counts_where_it_breaks_a_limit(
    measurement: Measurement, budget: dict[str, Any], expected: str | None
) -> None:
    found = judged_again([("other", record(measurement, "pruned"))], Budget(**budget))
    assert [(each.reason, each.state, each.kind) for each in found] == ([(expected, "pruned", "imported")] if expected else [])
    assert [each.violations for each in found] == [Budget(**budget).violations(measurement)] * len(found)


@pytest.mark.parametrize("limit", [0.1, 0.01])
def test_one_that_was_measured_in_full_always_counts(limit: float) -> None:
    (found,) = judged_again([("other", record(WHOLE))], Budget(accuracy_drop=limit))
    assert (found.state, found.measurement, found.seconds) == ("complete", WHOLE, {})
    assert found.feasible == (limit > 0.02)


def test_one_without_a_figure_that_is_limited_now_is_measured_again() -> None:
    assert judged_again([("other", record(WHOLE))], Budget(memory_bytes=1e6)) == []
    (found,) = judged_again([("other", record(replace(WHOLE, memory_bytes=2_000_000)))], Budget(memory_bytes=1e6))
    assert found.violations == {"memory_bytes": 1.0}


def test_failed_repeated_and_imported_ones_are_left_out() -> None:
    unwanted = [record(Measurement(), "failed"), record(WHOLE, kind="repeated"), record(WHOLE, kind="imported")]
    assert judged_again([("other", each) for each in unwanted], Budget()) == []


def test_each_policy_once_and_measured_in_full_where_it_was() -> None:
    records = [record(SIZE, "pruned", number=0), record(WHOLE, policy=INT4, number=1), record(WHOLE, number=2), record(WHOLE)]
    found = judged_again([("other", each) for each in records], Budget(size_ratio=0.4))
    assert [(each.policy, each.state, each.number) for each in found] == [(INT8, "complete", 2), (INT4, "complete", 1)]
