"""How long trials take, and so how long a search will."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median

LAST = 20
"""So many of the last trials tell how long the next will take."""


class Pace:
    """The median time of the last trials that were measured in this run, from one trial's end to the next one's."""

    def __init__(self, timeout: float | None) -> None:
        self._seconds: deque[float] = deque(maxlen=LAST)
        self._last = time.monotonic()
        self._end = None if timeout is None else self._last + timeout
        self.measured = 0

    def trial(self, is_measured: bool) -> None:
        """A trial ended just now."""
        now = time.monotonic()
        if is_measured:
            self._seconds.append(now - self._last)
            self.measured += 1
        self._last = now

    def seconds(self, trials: int) -> float | None:
        """Time until so many further trials are done, or the time is over; None: nothing was measured yet."""
        if not self._seconds:
            return None
        return min(median(self._seconds) * trials, self._left())

    def trials(self, wanted: int) -> int:
        """How many of the further trials that are wanted begin before the time is over."""
        each = median(self._seconds) if self._seconds else 0.0
        return wanted if each * wanted <= self._left() else math.ceil(self._left() / each)

    def _left(self) -> float:
        return math.inf if self._end is None else max(0.0, self._end - time.monotonic())
