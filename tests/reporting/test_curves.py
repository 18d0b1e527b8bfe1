"""Curves of a search against a count of dominated points and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.budget import Budget, Measurement
from autocompress.policy import LayerPolicy, Policy
from autocompress.record import Objective, StudyContext, TrialRecord
from autocompress.reporting.curves import study_curves
from autocompress.testing import make_records, make_study

BUDGET = Budget(size_ratio=0.6)


@pytest.fixture
def study(tmp_path: Path) -> StudyContext:
    return replace(make_study(tmp_path), budget=BUDGET)


def records(study: StudyContext, count: int = 12) -> list[TrialRecord]:
    """Complete trials of random figures, and some that ended early."""
    rng = np.random.default_rng(0)
    return [record(study, number, *rng.uniform((-0.02, 0.3, 0.2), (0.12, 1.1, 1.0))) for number in range(count)]


def record(study: StudyContext, number: int, drop: float, latency: float, size: float) -> TrialRecord:
    template = make_records(study)[0]
    figures = Measurement(
        accuracy=0.9 - drop, accuracy_drop=drop, latency_ratio=latency, size_ratio=size, size_bytes=int(1000 * size), images=100
    )
    policy, early = Policy({f"layer{number}": LayerPolicy("int8", 8)}), number % 4 == 3
    figures = replace(figures, accuracy=None, accuracy_drop=None) if early else figures
    state = "pruned" if early else "complete"
    return replace(
        template, number=number, policy=policy, state=state, measurement=figures, violations=BUDGET.violations(figures)
    )


def test_hypervolume_after_each_trial_is_the_share_of_dominated_points(study: StudyContext) -> None:
    points = np.random.default_rng(1).uniform((0, 0, 0), (0.1, 1, 1), (200_000, 3))
    told, dominated, found = records(study), np.zeros(len(points), dtype=bool), list[float]()
    for one in told:
        figures = one.measurement
        if figures.accuracy_drop is not None:
            dominated |= (points >= (max(0, figures.accuracy_drop), figures.latency_ratio, figures.size_ratio)).all(axis=1)
        found.append(dominated.mean())
    assert study_curves(study, told).hypervolume == pytest.approx(found, abs=0.005)
    assert 0 < found[0] < found[-1] < 1


@pytest.mark.parametrize(("objective", "figure"), [("accuracy", "accuracy"), ("size", "size_ratio")])
def test_best_so_far_is_the_best_that_fits(study: StudyContext, objective: Objective, figure: str) -> None:
    told = records(study)
    found = study_curves(replace(study, objective=objective), told)
    for place in range(len(told)):
        fitting = [
            one.measurement for one in told[: place + 1] if one.state == "complete" and (one.measurement.size_ratio or 9) <= 0.6
        ]
        values = [getattr(figures, figure) for figures in fitting]
        expected = (max if figure == "accuracy" else min)(values) if values else None
        assert found.best[place] == expected
    assert (found.figure, found.trials) == (figure, tuple(range(len(told))))


def test_a_metric_without_shares_counts_drops_by_its_fp32_value(study: StudyContext) -> None:
    told = records(study)
    volumes = study_curves(study, told).hypervolume
    doubled = replace(study, percent=False, baseline=replace(study.baseline, accuracy=-50.0))
    drops = [
        replace(one.measurement, accuracy_drop=None if (drop := one.measurement.accuracy_drop) is None else 50 * drop)
        for one in told
    ]
    scaled = [replace(one, measurement=figures) for one, figures in zip(told, drops, strict=True)]
    assert study_curves(doubled, scaled).hypervolume == pytest.approx(volumes)
