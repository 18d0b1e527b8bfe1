"""How a search came along: what it had reached after each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.record import Objective, StudyContext, TrialRecord
from autocompress.reporting.hypervolume import REFERENCE, hypervolume
from autocompress.searching.history import History

BEST: dict[Objective, str] = {"accuracy": "accuracy", "latency": "latency_ratio", "size": "size_ratio", "pareto": "accuracy"}
"""The figure of `Measurement` that the best trial so far is told by."""


@dataclass(frozen=True)
class Curves:
    """Values after each finished trial, in the order in which they finished; all sequences are equally long.

    Attributes:
        figure: name of the figure of `Measurement` that `best` has.
        trials: numbers of the trials.
        best: figure of the best trial so far that fits the budget; None: none does yet.
        hypervolume: of the front so far (`autocompress.reporting.hypervolume`), 0 to 1.
    """

    figure: str
    trials: tuple[int, ...]
    best: tuple[float | None, ...]
    hypervolume: tuple[float, ...]


def study_curves(study: StudyContext, records: Sequence[TrialRecord]) -> Curves:
    """The curves of a study."""
    course, figure = Course(study), BEST[study.objective]
    reached = [course.add(record) for record in records]
    best = tuple(None if one.best is None else getattr(one.best.measurement, figure) for one in reached)
    return Curves(figure, tuple(record.number for record in records), best, tuple(one.hypervolume for one in reached))


@dataclass(frozen=True)
class Reached:
    """What a search has after a trial: the best trial that fits the budget, if any does, and the hypervolume of its front."""

    best: TrialRecord | None
    hypervolume: float


class Course:
    """Follows a study trial by trial; in a metric whose values are no shares, a drop counts as a share of FP32's value."""

    def __init__(self, study: StudyContext) -> None:
        self._history = History(study.objective, [])
        self._largest_drop = REFERENCE[0] * (1.0 if study.percent else abs(study.baseline.accuracy or 0.0) or 1.0)
        self._hypervolume = 0.0

    def add(self, record: TrialRecord) -> Reached:
        """One more finished trial."""
        front = self._history.front
        self._history.add(record)
        if self._history.front != front:
            self._hypervolume = hypervolume([one.measurement for one in self._history.front], self._largest_drop)
        return Reached(self._history.leader, self._hypervolume)
