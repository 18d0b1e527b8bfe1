"""What a search knows after each trial agrees with what all records say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from autocompress import LayerPolicy, Measurement, Policy, TrialRecord
from autocompress.record import Kind, Objective, State
from autocompress.searching.history import History
from autocompress.searching.selection import ranked

OBJECTIVES: tuple[Objective, ...] = ("accuracy", "latency", "size", "pareto")


def record(
    number: int, accuracy: float = 0.8, latency: float = 0.5, size: float = 0.4, kind: Kind = "trial", state: State = "complete"
) -> TrialRecord:
    figures = Measurement(int(1000 * size), size, latency, latency, accuracy, 0.9 - accuracy, 100)
    policy = Policy({f"layer{number}": LayerPolicy("int8", 8)})
    return TrialRecord(number, kind, state, "done", "", policy, figures, {"size_ratio": size - 0.5})


def drawn(seed: int) -> list[TrialRecord]:
    random = np.random.default_rng(seed)
    states: list[State] = ["complete", "complete", "complete", "pruned", "failed"]
    return [
        record(number, *random.integers(1, 9, size=3) / 10, state=states[random.integers(5)])  # type: ignore[arg-type]
        for number in range(40)
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_leader_is_the_best_of_all(objective: Objective, seed: int) -> None:
    records = drawn(seed)
    for count in range(len(records)):
        best = next(iter(ranked(records[:count], objective)), None)
        assert History(objective, records[:count]).leader == best


@pytest.mark.parametrize("seed", range(3))
def test_front_is_what_no_other_beats(seed: int) -> None:
    def beats(one: Measurement, other: Measurement) -> bool:
        costs = [
            np.array([-figures.accuracy, figures.latency_ratio, figures.size_ratio])  # type: ignore[operator]
            for figures in (one, other)
        ]
        return bool((costs[0] <= costs[1]).all() and (costs[0] < costs[1]).any())

    records = drawn(seed)
    complete = [each for each in records if each.state == "complete"]
    front = [each for each in complete if not any(beats(other.measurement, each.measurement) for other in complete)]
    assert History("size", records).front == front


def test_repeated_trials_do_not_count_and_imported_ones_do() -> None:
    first = record(0, kind="imported")
    again = replace(first, number=1, kind="repeated")
    history = History("size", [first, again, record(2), record(3, state="failed")])
    assert [each.number for each in history.records] == [0, 1, 2, 3]
    assert (history.count, history.imported, history.policies) == (3, 1, 2)
    assert history.known(first.policy) == first
    assert history.known(record(3).policy) is None, "it failed"


def waited(objective: Objective, records: Sequence[TrialRecord]) -> list[int]:
    return [History(objective, records[: count + 1]).waited for count in range(len(records))]


def test_waiting_ends_with_a_better_value_of_the_objective() -> None:
    sizes = [0.6, 0.45, 0.45, 0.4, 0.7, 0.39]  # above 0.5 is over the budget
    assert waited("size", [record(number, size=size) for number, size in enumerate(sizes)]) == [1, 0, 1, 0, 1, 0]


def test_a_latency_that_cannot_be_told_apart_is_not_better() -> None:
    latencies = [0.504, 0.501, 0.498, 0.49]
    assert waited("latency", [record(number, latency=latency) for number, latency in enumerate(latencies)]) == [0, 1, 2, 0]


def test_imported_and_repeated_trials_are_not_waited_for() -> None:
    records = [record(0, size=0.3, kind="imported"), record(1, kind="imported"), record(2), record(3, kind="repeated")]
    assert waited("size", records) == [0, 0, 1, 1]


def test_waiting_for_the_front_ends_where_its_volume_grows() -> None:
    """Checked against the volume itself, counted on a lattice of hundredths and, of the drop, thousandths."""
    random = np.random.default_rng(0)
    points = np.column_stack(
        [random.integers(1, 12, 60) / 1000 * 0.9, random.integers(1, 12, 60) / 100, random.integers(1, 12, 60) / 100]
    )
    records = [record(number, 0.9 - drop, latency, size) for number, (drop, latency, size) in enumerate(points)]
    filled = np.zeros((14, 14, 14), dtype=bool)
    expected, since = [], 0
    for drop, latency, size in points:
        before = filled.sum()
        filled[round(drop / 0.9 * 1000) :, round(latency * 100) :, round(size * 100) :] = True
        since = 0 if filled.sum() > before else since + 1
        expected.append(since)
    assert waited("pareto", records) == expected
    assert max(expected) > 5
