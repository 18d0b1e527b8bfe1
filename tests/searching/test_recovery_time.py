"""How much of a search's time recoveries have."""

from __future__ import annotations

import pytest

from autocompress.components import Recovery
from autocompress.searching.recovery_time import recovery_seconds


class Limited(Recovery):
    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds


@pytest.mark.parametrize(
    ("limits", "finalists", "timeout", "expected"),
    [
        ([600.0, 100.0], 3, None, 2100.0),
        ([600.0, 100.0], 3, 5000.0, 2100.0),
        ([600.0, None], 3, 3000.0, 1500.0),  # trials have half of the time at least
        ([None], 3, 3000.0, 0.0),
        ([], 3, 3000.0, 0.0),
    ],
)
def test_what_trials_leave(limits: list[float | None], finalists: int, timeout: float | None, expected: float) -> None:
    assert recovery_seconds([Limited(seconds) for seconds in limits], finalists, timeout) == expected
