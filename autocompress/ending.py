"""When a search ends, and the sentence that says why."""

from __future__ import annotations

import time
from dataclasses import dataclass

from autocompress.history import History

KNOWN_IN_A_ROW = 20
"""So many proposals in a row that were measured before: the sampler has nothing new, and may never have."""


@dataclass
class Ending:
    """What ends a search; whichever comes first.

    Attributes:
        trials: trials of the study, repeated ones not counted.
        timeout: seconds from now on; None: no limit.
        patience: trials without a better one, once something fits the budget; None: no limit.
        policies: how many the space has.
    """

    trials: int
    timeout: float | None
    patience: int | None
    policies: int

    def __post_init__(self) -> None:
        # Not fields: nobody gives these.
        self._begin = time.monotonic()
        self._known_in_a_row = 0

    def proposed(self, known: bool) -> None:
        """Told of each proposal, whether its policy was measured before."""
        self._known_in_a_row = self._known_in_a_row + 1 if known else 0

    def reason(self, history: History) -> str | None:
        """Why no further trial is started; None: one is."""
        done = f"{history.count} of {self.trials} trials"
        if history.count >= self.trials:
            return f"the search ended with {history.count} trials, as many as it was asked for{_imported(history)}"
        if history.policies >= self.policies:
            return f"the search ended after {done}: every policy of the space is measured"
        if self._known_in_a_row >= KNOWN_IN_A_ROW:
            return f"the search ended after {done}: the sampler's last {KNOWN_IN_A_ROW} proposals had all been measured before"
        if self.timeout is not None and time.monotonic() - self._begin > self.timeout:
            return f"the search ended after {done}: search.timeout={self.timeout:g} seconds are over"
        if self.patience is not None and history.leader is not None and history.waited >= self.patience:
            return f"the search ended after {done}: search.patience={self.patience} of them in a row brought nothing better"
        return None

    def stopped(self, history: History) -> str:
        """When the user ended it."""
        return f"the search was interrupted after {history.count} of {self.trials} trials"


def _imported(history: History) -> str:
    found = history.imported
    return f"; {found} of them were measured for another budget or objective" if found else ""
