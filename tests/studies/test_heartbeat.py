"""A process gives signs of life while its trial runs, and only then; others tell a slow process from a dead one."""

from __future__ import annotations

import time

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autocompress.studies.heartbeat import HEARTBEAT, MISSED, Heartbeat, Watch


def test_beats_until_it_is_stopped() -> None:
    heard: list[tuple[int, int]] = []
    heartbeat = Heartbeat(lambda trial, count: heard.append((trial, count)), 0.02)
    heartbeat.start(7)
    time.sleep(0.15)
    heartbeat.stop()
    until_then = list(heard)
    time.sleep(0.06)
    assert heard == until_then == [(7, count + 1) for count in range(len(heard))]
    assert len(heard) >= 2


@pytest.mark.parametrize(("error", "goes_on"), [(StorageInternalError, True), (UpdateFinishedTrialError, False)])
def test_a_database_that_is_away_only_delays_it(error: type[Exception], goes_on: bool) -> None:
    calls = []

    def beat(_: int, count: int) -> None:
        calls.append(count)
        raise error

    heartbeat = Heartbeat(beat, 0.01)
    heartbeat.start(1)
    time.sleep(0.2)
    heartbeat.stop()
    assert (len(calls) > 1) == goes_on


def running(number: int, count: int | None) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={} if count is None else {HEARTBEAT: count})
    trial.number = number
    return trial


def test_a_trial_is_silent_when_its_count_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both one that beat and one that never did; the time of a count starts when it is first seen."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch, grace = Watch(10), 10 * MISSED

    def silent(*counts: int | None) -> list[int]:
        return [trial.number for trial in watch.silent([running(number, count) for number, count in enumerate(counts)])]

    assert silent(5, None, 1) == []
    now[0] += grace - 1
    assert silent(5, None, 2) == []
    now[0] += 2
    assert silent(5, None, 2) == [0, 1]
    assert silent(6, None, 2) == [1], "it was only slow"
    now[0] += grace - 2
    assert silent(6, 1, 2) == []
    now[0] += 2
    assert silent(6, 1, 2) == [2]
