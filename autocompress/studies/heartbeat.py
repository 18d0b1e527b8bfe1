"""Signs of life: a process says that its trial is running, and others see when it no longer does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial

HEARTBEAT = "heartbeat"
"""Attribute of a running trial: how often its process has said so."""

MISSED = 3
"""A process that misses so many heartbeats is taken for dead."""


class Heartbeat:
    """Beats in a thread of its own, for one trial at a time. A database that is away for a while only delays it."""

    def __init__(self, beat: Callable[[int, int], object], seconds: float) -> None:
        """`beat` takes a trial's id and the count."""
        self._beat, self._seconds = beat, seconds
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self, trial_id: int) -> None:
        """Beat for this trial, at once and from now on, and no longer for another."""
        self.stop()
        self._stopped = Event()
        self._thread = Thread(target=self._run, args=(trial_id, self._stopped), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, trial_id: int, stopped: Event) -> None:
        count = 0
        while not stopped.is_set():
            count += 1
            try:
                self._beat(trial_id, count)
            except UpdateFinishedTrialError:  # others took this process for dead
                return
            except StorageInternalError:
                pass
            stopped.wait(self._seconds)


class Watch:
    """Sees which trials fell silent. Only this process's own clock counts: those of other machines may be off."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: between heartbeats."""
        self._grace = MISSED * seconds
        self._heard: dict[int, tuple[int, float]] = {}

    def silent(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The trials whose count has not changed for too long; the first look at a trial starts its time."""
        now = time.monotonic()
        heard = {}
        for trial in running:
            count = int(trial.user_attrs.get(HEARTBEAT, 0))
            before = self._heard.get(trial.number)
            heard[trial.number] = before if before is not None and before[0] == count else (count, now)
        self._heard = heard
        return [trial for trial in running if now - heard[trial.number][1] > self._grace]
