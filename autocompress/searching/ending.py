"""When a search ends, and the sentence that says why."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from autocompress.searching.history import History

KNOWN_IN_A_ROW = 20
"""So many proposals in a row that were measured before: the sampler has nothing new, and may never have."""

HOPELESS_IN_A_ROW = 8
"""So many proposals in a row of which the sampler itself expects less than can be measured: the rest is noise."""


@dataclass
class Ending:
    """What ends a search; whichever comes first.

    Attributes:
        trials: trials of the study, repeated ones not counted.
        timeout: seconds from now on; None: no limit.
        patience: trials without a better one, once something fits the budget; None: no limit.
        policies: how many the space has.
        kept_seconds: part of the timeout that is for what follows the trials.
    """

    trials: int
    timeout: float | None
    patience: int | None
    policies: int
    kept_seconds: float = 0.0

    def __post_init__(self) -> None:
        # Not fields: nobody gives these.
        self.deadline = math.inf if self.timeout is None else time.monotonic() + self.timeout
        self._known_in_a_row = self._hopeless_in_a_row = 0

    def proposed(self, known: bool, expected_gain: float = math.inf) -> None:
        """Told of each proposal: whether its policy was measured before, and `Problem.expected_gain`."""
        self._known_in_a_row = self._known_in_a_row + 1 if known else 0
        self._hopeless_in_a_row = self._hopeless_in_a_row + 1 if expected_gain < 1 else 0

    def reason(self, history: History) -> str | None:
        """Why no further trial is started; None: one is."""
        if history.count >= self.trials:
            return f"the search ended with {history.count} trials, as many as it was asked for{_imported(history)}"
        why = next((sentence for sentence, holds in self._endings(history) if holds), None)
        return why and f"the search ended after {history.count} of {self.trials} trials: {why}"

    def _endings(self, history: History) -> list[tuple[str, bool]]:
        """Each way to end early, and whether it has come."""
        over = time.monotonic() > self.deadline - self.kept_seconds
        fits = history.leader is not None
        return [
            ("every policy of the space is measured", history.policies >= self.policies),
            (
                f"the sampler's last {KNOWN_IN_A_ROW} proposals had all been measured before",
                self._known_in_a_row >= KNOWN_IN_A_ROW,
            ),
            (
                "nothing is expected to be better by more than a trial can tell",
                fits and self._hopeless_in_a_row >= HOPELESS_IN_A_ROW,
            ),
            (f"search.timeout={self.timeout or 0:g} seconds are over{_kept(self.kept_seconds)}", over),
            (
                f"search.patience={self.patience} of them in a row brought nothing better",
                fits and self.patience is not None and history.waited >= self.patience,
            ),
        ]

    def stopped(self, history: History) -> str:
        """When the user ended it."""
        return f"the search was interrupted after {history.count} of {self.trials} trials"


def _kept(seconds: float) -> str:
    return f" but for {seconds:g} that are kept for recoveries" if seconds else ""


def _imported(history: History) -> str:
    found = history.imported
    return f"; {found} of them were measured for another budget or objective" if found else ""
