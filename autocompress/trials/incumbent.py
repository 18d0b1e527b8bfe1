"""The best trial so far, example by example: what later ones are compared with."""

from __future__ import annotations

from pathlib import Path

from autocompress.accuracy.intervals import Statistics
from autocompress.errors import AutocompressError, UnreachableError
from autocompress.policy import Policy
from autocompress.trials.trial import Bench


class Incumbent:
    """Keeps the metric's statistics of one policy on the whole search set; only a resumed search must compute them again."""

    def __init__(self, bench: Bench, path: Path) -> None:
        self._bench, self._path = bench, path
        self._digest = ""
        self._statistics: Statistics | None = None

    def learn(self, policy: Policy, statistics: Statistics | None) -> None:
        """A policy leads, and these are its statistics."""
        self._digest, self._statistics = policy.digest, statistics

    def statistics(self, policy: Policy) -> Statistics | None:
        """The statistics of the policy that leads; None: its file cannot be built and run any more."""
        if policy.digest != self._digest:
            self.learn(policy, self._measured(policy))
        return self._statistics

    def _measured(self, policy: Policy) -> Statistics | None:
        evaluator = self._bench.evaluator
        try:
            self._bench.build(policy, self._path)
            return evaluator.statistics(self._path, "search", 0, len(evaluator.targets["search"]))
        except UnreachableError:
            raise
        except AutocompressError:
            return None
        finally:
            self._path.unlink(missing_ok=True)
