"""What ends a search."""

from __future__ import annotations

import time
from typing import Any

import pytest

from autocompress import LayerPolicy, Measurement, Policy, TrialRecord
from autocompress.record import Kind
from autocompress.searching.ending import KNOWN_IN_A_ROW, Ending
from autocompress.searching.history import History


def history(count: int, kind: Kind = "trial", excess: float = -0.1) -> History:
    figures = Measurement(300, 0.3, 0.5, 0.5, 0.8, 0.1, 100)
    return History(
        "size",
        [
            TrialRecord(
                n, kind, "complete", "done", "", Policy({f"l{n}": LayerPolicy("int8", 8)}), figures, {"size_ratio": excess}
            )
            for n in range(count)
        ],
    )


def ending(**limits: Any) -> Ending:
    return Ending(**{"trials": 10, "timeout": None, "patience": None, "policies": 1000, **limits})


@pytest.mark.parametrize(
    ("limits", "trials", "reason"),
    [
        ({}, 9, None),
        ({}, 10, "the search ended with 10 trials, as many as it was asked for"),
        ({"policies": 8}, 7, None),
        ({"policies": 8}, 8, "the search ended after 8 of 10 trials: every policy of the space is measured"),
        ({"patience": 4}, 4, None),  # the first is the leader
        (
            {"patience": 4},
            5,
            "the search ended after 5 of 10 trials: search.patience=4 of them in a row brought nothing better",
        ),
    ],
)
def test_whichever_limit_is_reached(limits: dict[str, int], trials: int, reason: str | None) -> None:
    assert ending(**limits).reason(history(trials)) == reason


def test_patience_waits_for_something_that_fits() -> None:
    assert ending(patience=2).reason(history(9, excess=0.1)) is None


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    limited = ending(timeout=30.0)
    clock[0] = 79.0
    assert limited.reason(history(3)) is None
    clock[0] = 81.0
    assert limited.reason(history(3)) == "the search ended after 3 of 10 trials: search.timeout=30 seconds are over"


def test_time_that_is_kept_for_recoveries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    limited = ending(timeout=30.0, kept_seconds=10.0)
    assert limited.deadline == 80.0
    clock[0] = 70.0
    assert limited.reason(history(3)) is None
    clock[0] = 71.0
    assert (limited.reason(history(3)) or "").endswith(
        "search.timeout=30 seconds are over but for 10 that are kept for recoveries"
    )


def test_known_proposals_in_a_row() -> None:
    limited = ending()
    for known in [*[True] * (KNOWN_IN_A_ROW - 1), False, *[True] * (KNOWN_IN_A_ROW - 1)]:
        limited.proposed(known)
    assert limited.reason(history(3)) is None
    limited.proposed(known=True)
    assert "last 20 proposals had all been measured before" in (limited.reason(history(3)) or "")


def test_proposals_without_hope_in_a_row() -> None:
    ends = ending()
    for gain in [0.2] * 7 + [1.5] + [0.2] * 7:
        ends.proposed(known=False, expected_gain=gain)
        assert ends.reason(history(3)) is None
    ends.proposed(known=False, expected_gain=-1.0)
    assert ends.reason(history(3)) == (
        "the search ended after 3 of 10 trials: nothing is expected to be better by more than a trial can tell"
    )
    assert ends.reason(history(3, excess=0.1)) is None, "nothing fits yet"


def test_imported_trials_are_mentioned() -> None:
    expected = (
        "the search ended with 10 trials, as many as it was asked for; 10 of them were measured for another budget or objective"
    )
    assert ending().reason(history(10, "imported")) == expected


def test_interruption() -> None:
    assert ending().stopped(history(3)) == "the search was interrupted after 3 of 10 trials"
