"""The finished trials of a study, and what a search asks of them after each; an answer costs the same after a thousand."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.policy import Policy
from autocompress.record import Objective, TrialRecord
from autocompress.searching.selection import extended_front, mark, rank


class History:
    """Records in their order.

    Attributes:
        records: all of them, repeated ones included.
        count: trials that count: all but repeated ones.
        imported: how many of these were measured for another budget or objective.
        leader: the best that fits the budget; the earlier of two that are equal.
        front: those that no other beats in accuracy, latency and size at once.
        waited: trials since the last one that fits the budget and is better in the objective than all before, imported ones
            not counted; for `pareto`: since the last one that the front gains by.
    """

    def __init__(self, objective: Objective, records: Sequence[TrialRecord]) -> None:
        self._objective = objective
        self._known: dict[str, TrialRecord] = {}
        self._marks: list[tuple[float, ...]] = []
        self.records: list[TrialRecord] = []
        self.count = self.imported = self.waited = 0
        self.leader: TrialRecord | None = None
        self.front: list[TrialRecord] = []
        for record in records:
            self.add(record)

    @property
    def policies(self) -> int:
        """How many different policies have figures, or were given up."""
        return len(self._known)

    def known(self, policy: Policy) -> TrialRecord | None:
        """The first record of the very same policy that did not fail, or was given up."""
        return self._known.get(policy.digest)

    def add(self, record: TrialRecord) -> None:
        """One more finished trial."""
        self.records.append(record)
        if record.kind == "repeated":
            return
        self.count += 1
        self.imported += record.kind == "imported"
        self.waited += record.is_measured
        if record.state != "failed" or record.given_up:
            self._known.setdefault(record.policy.digest, record)
        if record.state == "complete":
            self.front = extended_front(self.front, record)
        if record.feasible:
            self._compare(record)

    def _compare(self, record: TrialRecord) -> None:
        figures = record.measurement
        if self.leader is None or rank(self._objective, figures) < rank(self._objective, self.leader.measurement):
            self.leader = record
        new = mark(self._objective, figures)
        if not any(_is_at_least(old, new) for old in self._marks):
            self._marks = [old for old in self._marks if not _is_at_least(new, old)] + [new]
            self.waited = 0


def _is_at_least(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))
