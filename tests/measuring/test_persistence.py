from __future__ import annotations

import time

import pytest

from autocompress.errors import ConnectionLostError, RuntimeCrashError, UnreachableError
from autocompress.measuring import persistence
from autocompress.measuring.persistence import persist


class Machine:
    """Is away for some requests."""

    def __init__(self, away: int, error: type[Exception] = ConnectionLostError) -> None:
        self.away, self.error, self.asked = away, error, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.away:
            raise self.error("board is away")
        return "answer"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time: the clock is put forward."""
    found: list[float] = []
    clock = time.monotonic
    monkeypatch.setattr(persistence.time, "sleep", found.append)
    monkeypatch.setattr(persistence.time, "monotonic", lambda: clock() + sum(found))
    return found


@pytest.mark.parametrize("seconds", [600.0, None])
def test_asks_again_after_growing_pauses(pauses: list[float], seconds: float | None) -> None:
    machine = Machine(away=9)
    assert persist(machine, seconds) == "answer"
    assert machine.asked == 10
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_ends_when_the_time_is_over(pauses: list[float]) -> None:
    with pytest.raises(UnreachableError, match=r"^board is away; tried again for 10 s .*; the same command resumes$") as error:
        persist(Machine(away=99), 10.0)
    assert not isinstance(error.value, ConnectionLostError), "nobody else tries again"
    assert pauses == [0.5, 1, 2, 4], "eight seconds more would be too late"


@pytest.mark.parametrize("error", [RuntimeCrashError, UnreachableError])
def test_what_trying_again_cannot_help_is_raised_at_once(pauses: list[float], error: type[Exception]) -> None:
    machine = Machine(1, error)
    with pytest.raises(error, match=r"^board is away$"):
        persist(machine, None)
    assert (machine.asked, pauses) == (1, [])
