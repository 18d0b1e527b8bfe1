from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from autocompress import Effect, SyntheticProblem
from autocompress.prediction.proposals import table_proposals

SIZES = {"stem": 3, "inner": 4, "outer": 3, "head": 2}


def figures(problem: SyntheticProblem, row: Sequence[int]) -> tuple[float, float]:
    """Sum of the divergences, and of the bytes of all options beyond FP32."""
    chosen = [problem.effects()[name][index] for name, index in zip(problem.parameters, row, strict=True)]
    return sum(effect.divergence for effect in chosen), sum(effect.size_bytes - 1_000_000 for effect in chosen)


def test_each_proposal_has_the_least_divergence_at_its_size() -> None:
    problem = SyntheticProblem(SIZES)
    every = [figures(problem, row) for row in product(*(range(count) for count in SIZES.values()))]
    found = [figures(problem, row) for row in table_proposals(problem, 8)]
    assert len(found) > 4
    for loss, saved in found:
        assert loss <= 1.001 * min(other for other, bytes_ in every if bytes_ <= saved)


def test_sizes_go_from_below_fp32_to_the_smallest() -> None:
    problem = SyntheticProblem(SIZES)
    rows = table_proposals(problem, 8)
    saved = [figures(problem, row)[1] for row in rows]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] < 0
    assert list(rows[-1]) == [count - 1 for count in SIZES.values()]


def test_as_many_as_asked_for_at_most_each_once() -> None:
    rows = table_proposals(SyntheticProblem({"head": 2}), 8)
    assert rows.tolist() == [[1]]
    assert len(table_proposals(SyntheticProblem(SIZES), 2)) == 2
    assert table_proposals(SyntheticProblem({}), 8).shape == (0, 0)


@dataclass
class Broken(SyntheticProblem):
    """The smallest option of one parameter does not run."""

    def effects(self) -> Mapping[str, Sequence[Effect]]:
        tables = dict(super().effects())
        tables["inner"] = [*tables["inner"][:-1], Effect(math.inf, math.inf, 1)]
        return tables


def test_what_does_not_run_is_not_proposed() -> None:
    rows = table_proposals(Broken(SIZES), 8)
    assert len(rows) > 2
    assert rows[:, list(SIZES).index("inner")].max() == 2
