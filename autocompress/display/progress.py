"""What a person sees while a search runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from autocompress.budget import Measurement
from autocompress.display.activity import Activity, Stage, Step, Trials
from autocompress.display.pace import Pace
from autocompress.quality import Quality
from autocompress.record import TrialRecord

NOTHING_FITS = "nothing within the budget yet"

ESTIMATE_AFTER = 3
"""Trials that are measured before the time of all is told."""


def describe(measurement: Measurement, quality: Quality) -> str:
    """Figures in a few words: `0.41x latency, 0.272x size, accuracy 88.10% (-0.3 points)`."""
    parts = []
    if measurement.latency_ratio is not None:
        parts.append(f"{measurement.latency_ratio:.2f}x latency")
    if measurement.size_ratio is not None:
        parts.append(f"{measurement.size_ratio:.3f}x size")
    if measurement.accuracy is not None and measurement.accuracy_drop is not None:
        value, change = quality.value(measurement.accuracy), quality.signed(measurement.accuracy_drop)
        parts.append(f"{quality.metric} {value} ({change})")
    return ", ".join(parts)


def describe_policy(record: TrialRecord) -> str:
    """A policy in two figures: mean bits of a weight, and the share of weights removed: `4.7b s35`."""
    weights = sum(row.parameters for row in record.layers)
    if not weights:
        return "-"
    bits = sum(row.bits * row.parameters for row in record.layers) / weights
    cut = sum(row.sparsity * row.parameters for row in record.layers) / weights
    channels = [group.sparsity for group in record.policy.channels.values()]
    parts = [
        f"{bits:.1f}b",
        f"s{100 * cut:.0f}" if cut else "",
        f"c{100 * sum(channels) / len(channels):.0f}" if channels else "",
    ]
    return " ".join(part for part in parts if part)


def outcome(record: TrialRecord, quality: Quality) -> str:
    """A trial in a few words: its policy, then its figures or where it ended."""
    ended = describe(record.measurement, quality) if record.state == "complete" else f"{record.state} at {record.gate}"
    return f"{describe_policy(record)}: {ended}"


class Display(Protocol):
    """Where progress is shown. It reads the activity; these methods say that there is something new."""

    def open(self) -> None:
        """Something begins that takes time."""

    def close(self) -> None:
        """It is over, or the user ended it: leave what stays, and nothing else."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def stage(self, stage: Stage) -> None:
        """A stage is over."""

    def trial(self) -> None:
        """A trial is over."""

    def step(self, line: str | None) -> None:
        """A long stage has come further; the line tells it where nothing is redrawn, None: not worth one."""


class Nothing:
    """Shows nothing."""

    def open(self) -> None:
        """As all the others."""

    close = trial = open

    def line(self, text: str) -> None:
        """As all the others."""

    def stage(self, stage: Stage) -> None:
        """As all the others."""

    def step(self, line: str | None) -> None:
        """As all the others."""


class Lines(Nothing):
    """Plain lines, for files, pipes, and terminals that cannot redraw or are shared with other processes.

    Args:
        label: begins each line, where several jobs write.
    """

    def __init__(self, stream: TextIO, activity: Activity, label: str = "") -> None:
        self._stream, self._activity, self._label = stream, activity, label

    def line(self, text: str) -> None:
        """In one piece, so that lines of several processes do not mix."""
        self._stream.write(f"{self._label}: {text}\n" if self._label else f"{text}\n")
        self._stream.flush()

    def stage(self, stage: Stage) -> None:
        """How long it took."""
        self.line(f"{stage.name}: {stage.seconds:.1f} s")

    def trial(self) -> None:
        """Everything in one line."""
        trials, record = self._activity.trials, self._activity.trials.last
        assert record is not None
        best, seconds = trials.best, trials.seconds_left
        leader = f"best t{best.number:04d}: {describe(best.measurement, trials.quality)}" if best else NOTHING_FITS
        left = f" | {seconds / 60:.1f} min left" if seconds is not None else ""
        self.line(f"[{trials.done}/{trials.total}] t{record.number:04d} {outcome(record, trials.quality)} | {leader}{left}")

    def step(self, line: str | None) -> None:
        """A line where it is worth one."""
        if line is not None:
            self.line(line)


def _display(stream: TextIO, activity: Activity, label: str) -> Display:
    if not can_redraw(stream):
        return Lines(stream, activity, label)
    from autocompress.display.screen import Screen

    return Screen(stream, activity, label)


def can_redraw(stream: TextIO) -> bool:
    """Whether it is a terminal that moves its cursor, and no other process of a sweep writes to it."""
    alone = multiprocessing.current_process().name == "MainProcess"
    return alone and stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Progress:
    """Shows stages and trials with the best so far and the time left.

    While a stage runs, or within `with progress`, a terminal has a display at its bottom, which goes at the end.

    Args:
        stream: standard error by default.
        label: names the job, where there are several.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, label: str = "") -> None:
        self._activity = Activity()
        self._display = Nothing() if quiet else _display(stream or sys.stderr, self._activity, label)
        self._users = 0

    def __enter__(self) -> Progress:
        if self._users == 0:
            self._display.open()
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self._users == 0:
            self._display.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage, and say how long it took."""
        stage, stages = Stage(name), self._activity.stages
        stages.append(stage)
        with self:
            try:
                yield
                self._display.stage(stage)
            finally:
                stages.remove(stage)
                self._activity.step = None

    def begin_trials(self, quality: Quality, timeout: float | None = None, kept_seconds: float = 0.0) -> None:
        """Start the clock of the trials, whose accuracies are values of this metric.

        Args:
            timeout: seconds for the trials and what follows them; None: no limit.
            kept_seconds: at most so many of them, or after the trials, are for recoveries.
        """
        pace = Pace(None if timeout is None else timeout - kept_seconds)
        self._activity.trials = Trials(quality, pace, kept_seconds)

    def trial(self, record: TrialRecord, done: int, total: int, best: TrialRecord | None) -> None:
        """One finished trial, the study's `done`-th of `total`."""
        trials = self._activity.trials
        trials.finished(record, done, total, best)
        self._display.trial()
        if record.is_measured and trials.pace.measured == ESTIMATE_AFTER:
            self._estimate(trials)

    def _estimate(self, trials: Trials) -> None:
        seconds, count = trials.seconds_left, trials.pace.trials(trials.total - trials.done)
        if seconds and count:
            kept = trials.kept_seconds
            recovery = f", then at most {kept / 60:.1f} for recoveries" if kept else ""
            self._display.line(f"about {seconds / 60:.1f} minutes for {count} more trials{recovery}")

    def epoch(self, epoch: int, epochs: int, loss: float) -> None:
        """One epoch of training."""
        remark = f"epoch {epoch}/{epochs}, loss {loss:.3f}"
        self._step(Step("training", epoch / epochs, remark), f"training: {remark}")

    def training(self, what: str, epoch: int, epochs: int, loss: float, held_out: float, done: float) -> None:
        """One epoch of a training with a time limit; `done` is the share of it that is over."""
        remark = f"epoch {epoch}/{epochs}, loss {loss:.4f}, best held-out loss {held_out:.4f}"
        self._step(Step(what, done, remark), f"{what} [{'#' * round(20 * done):<20}] {remark}")

    def step(self, what: str, done: int, total: int, seconds: float) -> None:
        """Where a long stage is, `done` steps of which took so many seconds; a log has a line for each tenth."""
        left = f", {seconds / done * (total - done) / 60:.1f} min left" if done else ""
        tenth = done and 10 * done // total > 10 * (done - 1) // total
        self._step(Step(what, done / total, f"{done}/{total}{left}"), f"{what}: {done}/{total}{left}" if tenth else None)

    def _step(self, step: Step, line: str | None) -> None:
        self._activity.step = step
        self._display.step(line)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._display.line(text)
