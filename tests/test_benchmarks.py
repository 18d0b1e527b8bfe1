"""What the benchmarks compute themselves, against independent computations."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from autocompress import Latency, LayerPolicy, Measurement, Policy, SyntheticProblem
from autocompress.choices.space import SearchSpace
from autocompress.record import Objective
from autocompress.reporting.hypervolume import REFERENCE, hypervolume
from autocompress.trials.trial import Bench
from benchmarks.efficiency_figure import at_times, draw, p_value, summary
from benchmarks.evaluation_cache import EvaluationCache
from benchmarks.integer_program import integer_program
from benchmarks.long_study import seconds_of_trials


def made_up(seed: int, count: int = 12) -> list[Measurement]:
    """Some of them outside of the reference."""
    drawn = np.random.default_rng(seed).random((count, 3)) * [0.12, 1.1, 1.1] - [0.01, 0, 0]
    return [Measurement(accuracy_drop=drop, latency_ratio=latency, size_ratio=size) for drop, latency, size in drawn]


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_is_the_share_of_dominated_points(seed: int) -> None:
    """By drawing 200,000 points of the box: the share's standard error is under 0.0012."""
    figures = made_up(seed)
    points = np.random.default_rng(9).random((200_000, 3)) * REFERENCE
    dominated = np.zeros(len(points), dtype=bool)
    for f in figures:
        assert f.accuracy_drop is not None and f.latency_ratio is not None and f.size_ratio is not None
        dominated |= (points >= [f.accuracy_drop, f.latency_ratio, f.size_ratio]).all(axis=1)
    assert hypervolume(figures) == pytest.approx(dominated.mean(), abs=0.005)


def test_hypervolume_is_that_of_another_algorithm() -> None:
    figures = made_up(7, 60)
    points = np.array([(max(0.0, f.accuracy_drop or 0.0), f.latency_ratio, f.size_ratio) for f in figures], dtype=float)
    points = np.concatenate([points, points[:5]])  # equal ones count once
    inside = points[(points < REFERENCE).all(axis=1)]
    expected = compute_hypervolume(inside, np.array(REFERENCE)) / np.prod(REFERENCE)
    assert hypervolume([*figures, *figures[:5]]) == pytest.approx(expected, rel=1e-9)


def test_hypervolume_of_one_file_is_its_box() -> None:
    assert hypervolume([Measurement(accuracy_drop=0.05, latency_ratio=0.5, size_ratio=0.25)]) == pytest.approx(0.5 * 0.5 * 0.75)
    assert hypervolume([Measurement(accuracy_drop=0.11, latency_ratio=0.5, size_ratio=0.25), Measurement()]) == 0


def modelled(ratio: float) -> Latency:
    return Latency(ratio, ratio, 1.0, ratio, ratio, ratio, 0, "model")


def test_a_file_is_evaluated_once_also_after_a_kill(quick_bench: Bench, baseline: Measurement, tmp_path: Path) -> None:
    path, policy = tmp_path / "cache.jsonl", Policy({"head": LayerPolicy("int8", 8)})
    first = EvaluationCache(quick_bench, path, lambda _: modelled(0.5)).measure(policy)
    assert first.measurement.size_bytes is not None and baseline.size_bytes is not None
    assert first.measurement.size_bytes < baseline.size_bytes
    assert first.measurement.accuracy is not None and baseline.accuracy is not None
    assert first.measurement.accuracy_drop == pytest.approx(baseline.accuracy - first.measurement.accuracy)
    path.write_text(path.read_text() + '{"sha256": "cut o', encoding="utf-8")
    again = EvaluationCache(quick_bench, path, lambda _: modelled(0.4))
    assert again.measure(policy) != first
    assert again.measure(policy).seconds == first.seconds
    again.measure(Policy({"head": LayerPolicy("int4", 4)}))
    assert len(EvaluationCache(quick_bench, path, lambda _: modelled(0.4))._by_file) == 2


OPTIONS = (LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4))
LAYERS = ("stem", "inner", "outer", "head")
SPACE = SearchSpace(dict.fromkeys(LAYERS, OPTIONS), {})


def integer_share(policy: Policy) -> float:
    return 1 - 0.6 * sum((LAYERS.index(name) + 1) / 10 for name in policy.layers)


def test_integer_program_gives_the_best_within_both_limits() -> None:
    """Nothing that is at most as large and at most as slow has a smaller sum of losses."""
    problem = SyntheticProblem(SPACE.sizes)
    effects = problem.effects()

    def figures(policy: Policy) -> tuple[float, float, float]:
        chosen = [effects[name][index] for name, index in SPACE.indices(policy).items()]
        return sum(e.divergence for e in chosen), sum(e.size_bytes for e in chosen), integer_share(policy)

    every = [figures(SPACE.policy(dict(zip(LAYERS, row, strict=True)))) for row in product(range(3), repeat=4)]
    found = integer_program(problem, SPACE, lambda policy: modelled(integer_share(policy)), 25, seed=0)
    assert 5 < len(found) == len({policy.digest for policy in found}) <= 25
    for loss, size, latency in map(figures, found):
        assert loss <= 1.001 * min(other[0] for other in every if other[1] <= size and other[2] <= latency + 1e-9)
    assert sorted(
        p.digest for p in integer_program(problem, SPACE, lambda policy: modelled(integer_share(policy)), 25, seed=1)
    ) == sorted(p.digest for p in found)


def rows(arm: str, seed: int, *points: tuple[float, float]) -> list[dict[str, object]]:
    return [
        {"arm": arm, "seed": seed, "trial": number, "complete": number > 0, "hypervolume": volume, "seconds": seconds}
        for number, (seconds, volume) in enumerate(points)
    ]


def test_curves_are_compared_at_equal_trials_and_at_equal_time(tmp_path: Path) -> None:
    slow = [row for seed in range(6) for row in rows("tpe", seed, (1, 0.1), (2, 0.2), (3, 0.3 + seed / 100))]
    fast = [row for seed in range(6) for row in rows("knapsack", seed, (2, 0.2), (4, 0.4 + seed / 50), (6, 0.5 + seed / 50))]
    assert at_times(slow, "tpe", np.array([0.5, 1, 2.5, 9]))[1].tolist() == [0, 0.1, 0.2, 0.31]
    lines = summary([*slow, *fast])
    assert "knapsack reaches tpe's final 0.3250 at trial 2 (median)" in lines
    assert "knapsack against tpe: at the last trial p = 0.0312" in lines  # 2 / 2^6: each seed of six on one side
    assert "the tables of knapsack are complete after at most 4 s" in lines
    assert "  tpe is ahead at 0 of 200 moments after that, by at most 0.0000" in lines
    assert "  after 4 s: knapsack 0.4500 against 0.3250 of tpe, p = 0.0312" in lines
    assert np.isnan(p_value(np.ones(1), np.zeros(1)))
    draw([*slow, *fast], "tiny", tmp_path / "figure.png")
    assert 1_000 < (tmp_path / "figure.png").stat().st_size < 300_000


@pytest.mark.parametrize("objective", ["accuracy", "pareto"])
def test_a_made_up_study_is_as_long_as_it_is_asked_for(objective: Objective) -> None:
    found = seconds_of_trials(objective, 12)
    assert len(found) == 12
    assert all(wall > 0 and processor > 0 for wall, processor in found)
