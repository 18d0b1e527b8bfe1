"""How a search came along: what it had reached after each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.history import History
from autocompress.hypervolume import REFERENCE, hypervolume
from autocompress.record import Objective, StudyContext, TrialRecord

BEST: dict[Objective, str] = {"accuracy": "accuracy", "latency": "latency_ratio", "size": "size_ratio", "pareto": "accuracy"}
"""The figure of `Measurement` that the best trial so far is told by."""


@dataclass(frozen=True)
class Curves:
    """Values after each finished trial, in the order in which they finished; all sequences are equally long.

    Attributes:
        figure: name of the figure of `Measurement` that `best` has.
        trials: numbers of the trials.
        best: figure of the best trial so far that fits the budget; None: none does yet.
        hypervolume: of the front so far (`autocompress.hypervolume`), 0 to 1.
    """

    figure: str
    trials: tuple[int, ...]
    best: tuple[float | None, ...]
    hypervolume: tuple[float, ...]


def study_curves(study: StudyContext, records: Sequence[TrialRecord]) -> Curves:
    """The curves of a study; in a metric whose values are no shares, a drop counts as a share of FP32's value."""
    history, figure = History(study.objective, []), BEST[study.objective]
    largest = REFERENCE[0] * (1.0 if study.percent else abs(study.baseline.accuracy or 0.0) or 1.0)
    best, volumes = list[float | None](), list[float]()
    for record in records:
        front = history.front
        history.add(record)
        best.append(None if history.leader is None else getattr(history.leader.measurement, figure))
        changed = not volumes or history.front != front
        volumes.append(hypervolume([one.measurement for one in history.front], largest) if changed else volumes[-1])
    return Curves(figure, tuple(record.number for record in records), tuple(best), tuple(volumes))
