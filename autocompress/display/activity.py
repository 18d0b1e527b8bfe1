"""What a run is at: the state that a display shows, whatever it looks like."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from autocompress.display.pace import Pace
from autocompress.quality import Quality
from autocompress.record import TrialRecord


@dataclass
class Trials:
    """The trials of a search so far.

    Attributes:
        kept_seconds: at most so many, after the trials, are for recoveries.
        best: what would be delivered now; None: nothing fits the budget yet.
    """

    quality: Quality = field(default_factory=Quality)
    pace: Pace = field(default_factory=lambda: Pace(None))
    kept_seconds: float = 0.0
    done: int = 0
    total: int = 0
    best: TrialRecord | None = None
    last: TrialRecord | None = None
    updated: float = field(default_factory=time.monotonic)

    def finished(self, record: TrialRecord, done: int, total: int, best: TrialRecord | None) -> None:
        """One more trial ended just now."""
        self.pace.trial(record.is_measured)
        self.last, self.done, self.total, self.best = record, done, total, best
        self.updated = time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        """From the end of the last trial to that of all; None: not known yet."""
        return self.pace.seconds(self.total - self.done)


@dataclass(frozen=True)
class Stage:
    """A part of the run with a name, and when it began (`time.monotonic`)."""

    name: str
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.start


@dataclass(frozen=True)
class Step:
    """Where a long stage is: a share of it that is done, and a remark."""

    what: str
    done: float
    remark: str


@dataclass
class Activity:
    """Everything that a display may show at this moment; stages may lie within each other."""

    start: float = field(default_factory=time.monotonic)
    stages: list[Stage] = field(default_factory=list)
    step: Step | None = None
    trials: Trials = field(default_factory=Trials)
