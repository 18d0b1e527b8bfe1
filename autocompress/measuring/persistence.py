"""Asks again while a machine is away, with growing pauses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TypeVar

from autocompress.errors import ConnectionLostError, UnreachableError

Answer = TypeVar("Answer")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


def persist(ask: Callable[[], Answer], seconds: float | None) -> Answer:
    """The answer, as soon as the machine is there to give it.

    Args:
        seconds: how long a lost connection is tried again; None: for ever.

    Raises:
        UnreachableError: the machine did not come back in time.
    """
    lost = 0.0
    for attempt in itertools.count():
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(attempt, 16), LONGEST_PAUSE_SECONDS)
        try:
            return ask()
        except ConnectionLostError as error:
            lost = lost or time.monotonic()
            if seconds is not None and time.monotonic() - lost + pause > seconds:
                tried = f"tried again for {seconds:g} s (trial.reconnect_seconds); the same command resumes"
                raise UnreachableError(f"{error}; {tried}") from error
        time.sleep(pause)
    raise AssertionError
