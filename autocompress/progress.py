"""What a person sees while a search runs: one line, rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from autocompress.budget import Measurement
from autocompress.pace import Pace
from autocompress.quality import Quality
from autocompress.record import TrialRecord


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


ESTIMATE_AFTER = 3
"""Trials that are measured before the time of all is told."""


class Progress:
    """Prints stages and trials with the best so far and the time left."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._pace = Pace(None)
        self._quality = Quality()
        self._kept_seconds = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, and say how long it took."""
        start = time.monotonic()
        self._transient(f"{name} ...")
        yield
        self._line(f"{name}: {time.monotonic() - start:.1f} s")

    def begin_trials(self, quality: Quality, timeout: float | None = None, kept_seconds: float = 0.0) -> None:
        """Start the clock of the trials, whose accuracies are values of this metric.

        Args:
            timeout: seconds for the trials and what follows them; None: no limit.
            kept_seconds: at most so many of them, or after the trials, are for recoveries.
        """
        self._pace, self._quality = Pace(None if timeout is None else timeout - kept_seconds), quality
        self._kept_seconds = kept_seconds

    def trial(self, record: TrialRecord, done: int, total: int, best: TrialRecord | None) -> None:
        """One finished trial, the study's `done`-th of `total`."""
        self._pace.trial(record.is_measured)
        outcome = self._described(record) if record.state == "complete" else f"{record.state} at {record.gate}"
        outcome = f"{describe_policy(record)}: {outcome}"
        leader = f"best t{best.number:04d}: {self._described(best)}" if best else "nothing within the budget yet"
        seconds = self._pace.seconds(total - done)
        left = f" | {seconds / 60:.1f} min left" if seconds is not None else ""
        self._line(f"[{done}/{total}] t{record.number:04d} {outcome} | {leader}{left}")
        if record.is_measured and self._pace.measured == ESTIMATE_AFTER:
            self._estimate(total - done)

    def _estimate(self, wanted: int) -> None:
        seconds, trials = self._pace.seconds(wanted), self._pace.trials(wanted)
        if seconds and trials:
            recovery = f", then at most {self._kept_seconds / 60:.1f} for recoveries" if self._kept_seconds else ""
            self._line(f"about {seconds / 60:.1f} minutes for {trials} more trials{recovery}")

    def _described(self, record: TrialRecord) -> str:
        return describe(record.measurement, self._quality)

    def epoch(self, epoch: int, epochs: int, loss: float) -> None:
        """One epoch of training."""
        self._line(f"training: epoch {epoch}/{epochs}, loss {loss:.3f}")

    def training(self, what: str, epoch: int, epochs: int, loss: float, held_out: float, done: float) -> None:
        """One epoch of a training with a time limit; `done` is the share of it that is over."""
        bar = "#" * round(20 * done)
        self._line(f"{what} [{bar:<20}] epoch {epoch}/{epochs}, loss {loss:.4f}, best held-out loss {held_out:.4f}")

    def step(self, what: str, done: int, total: int, seconds: float) -> None:
        """Where a long stage is, `done` steps of which took so many seconds; a log has a line for each tenth."""
        left = f", {seconds / done * (total - done) / 60:.1f} min left" if done else ""
        if self._stream.isatty():
            self._transient(f"{what}: {done}/{total}{left}")
        elif done and 10 * done // total > 10 * (done - 1) // total:
            self._line(f"{what}: {done}/{total}{left}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._line(text)

    def _transient(self, text: str) -> None:
        if self._stream.isatty() and not self._quiet:
            self._stream.write(f"\r\x1b[2K{text}")
            self._stream.flush()

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(f"\r\x1b[2K{text}\n" if self._stream.isatty() else f"{text}\n")
            self._stream.flush()
