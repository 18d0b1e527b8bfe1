"""Draws and compares the curves of `benchmarks.search_efficiency`: hypervolume against trials and against wall clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

Rows = Sequence[Mapping[str, Any]]
"""Each with arm, seed, trial (from 0), hypervolume, seconds since the arm began, and whether its tables are complete."""

MAIN, BASELINE = "knapsack", "tpe"
MOMENTS = (1.0, 1.5, 2.0, 4.0)
"""Multiples of the wall clock at which the tables are complete, when the arms are compared."""

GRID = 200
"""Moments after that at which no other arm should be ahead."""


def curves(rows: Rows, arm: str, column: str) -> NDArray[np.float64]:
    """One arm's column by trial: shape (seeds, trials)."""
    seeds = sorted({row["seed"] for row in rows if row["arm"] == arm})
    found = [[row[column] for row in rows if row["arm"] == arm and row["seed"] == seed] for seed in seeds]
    return np.array(found, dtype=np.float64)


def at_times(rows: Rows, arm: str, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hypervolume that each seed of an arm has reached at each time: shape (seeds, times)."""
    pairs = zip(curves(rows, arm, "seconds"), curves(rows, arm, "hypervolume"), strict=True)
    return np.array([np.concatenate([[0.0], v])[np.searchsorted(s, times, side="right")] for s, v in pairs])


def p_value(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Wilcoxon's signed-rank test over paired seeds; not a number where there is nothing to test."""
    if len(ours) != len(theirs) or len(ours) < 2 or np.array_equal(ours, theirs):
        return math.nan
    return float(wilcoxon(ours, theirs).pvalue)


def completed(rows: Rows) -> float:
    """Seconds after which the main sampler's tables are complete in every seed: seeds and first proposals come before."""
    ours, complete = curves(rows, MAIN, "seconds"), curves(rows, MAIN, "complete").astype(bool)
    return float(max(seconds[done][0] for seconds, done in zip(ours, complete, strict=True)))


def summary(rows: Rows) -> list[str]:
    """Sentences: when the main sampler reaches what the baseline ends with, and every arm against it."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [f"{arm}: final hypervolume {np.median(curves(rows, arm, 'hypervolume')[:, -1]):.4f} (median)" for arm in arms]
    if MAIN not in arms:
        return lines
    ours = curves(rows, MAIN, "hypervolume")
    if BASELINE in arms:
        goal = float(np.median(curves(rows, BASELINE, "hypervolume")[:, -1]))
        lines.append(
            f"{MAIN} reaches {BASELINE}'s final {goal:.4f} at trial {_reached(np.median(ours, axis=0), goal)} (median)"
        )
    begin = completed(rows)
    times = np.array([begin * multiple for multiple in MOMENTS])
    ours_then = at_times(rows, MAIN, times)
    lines.append(f"the tables of {MAIN} are complete after at most {begin:.0f} s")
    for arm in arms:
        if arm != MAIN:
            theirs, then = curves(rows, arm, "hypervolume")[:, -1], at_times(rows, arm, times)
            lines.append(f"{MAIN} against {arm}: at the last trial p = {p_value(ours[:, -1], theirs):.3g}")
            lines.append(_ahead(rows, arm, begin))
            lines += [_at(arm, time, ours_then[:, i], then[:, i]) for i, time in enumerate(times)]
    return lines


def _ahead(rows: Rows, arm: str, begin: float) -> str:
    """How often, and by how much, an arm's median is ahead of the main sampler's once the tables are complete."""
    times = np.linspace(begin, max(row["seconds"] for row in rows), GRID)
    lead = np.median(at_times(rows, arm, times), axis=0) - np.median(at_times(rows, MAIN, times), axis=0)
    return f"  {arm} is ahead at {int((lead > 0).sum())} of {GRID} moments after that, by at most {max(0.0, lead.max()):.4f}"


def _reached(curve: NDArray[np.float64], goal: float) -> str:
    """Number of the first trial, counted from 1, that reaches the goal."""
    reached = np.flatnonzero(curve >= goal)
    return str(int(reached[0]) + 1) if len(reached) else "(never)"


def _at(arm: str, time: float, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> str:
    medians = f"{np.median(ours):.4f} against {np.median(theirs):.4f}"
    return f"  after {time:.0f} s: {MAIN} {medians} of {arm}, p = {p_value(ours, theirs):.3g}"


def draw(rows: Rows, title: str, path: Path) -> None:
    """Median over seeds, with the range between the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    times = np.linspace(0, max(row["seconds"] for row in rows), 300)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        values = curves(rows, arm, "hypervolume")
        _line(left, np.arange(1, values.shape[1] + 1), values, arm)
        _line(right, times, at_times(rows, arm, times), arm)
    if any(row["arm"] == MAIN for row in rows):
        right.axvline(completed(rows), color="gray", linestyle=":", label="tables complete")
    left.set(xlabel="trial", ylabel="hypervolume (share of the box)")
    right.set(xlabel="seconds, tables counted where used")
    right.legend(fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _line(axes: Any, x: NDArray[Any], values: NDArray[np.float64], label: str) -> None:
    line = axes.plot(x, np.median(values, axis=0), label=label)[0]
    low, high = np.percentile(values, [25, 75], axis=0)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
