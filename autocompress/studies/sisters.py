"""What was measured of the same model, data, target and space for another budget or objective: judged again, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autocompress.budget import Budget
from autocompress.record import TrialRecord

SURE_SPREADS = 3.0
"""Standard errors by which a drop must exceed a limit before it does so for sure."""


def judged_again(records: Sequence[tuple[str, TrialRecord]], budget: Budget) -> list[TrialRecord]:
    """The records that tell something under this budget, each policy once.

    A policy that was measured in full counts, unless this budget limits a figure that was not asked for then. One that was
    stopped early counts when what was measured of it breaks a limit; otherwise it may fit, and has to be measured again, as has
    one that failed.

    Args:
        records: each with the name of the study that it is from.
    """
    own = [(study, record) for study, record in records if record.is_measured and record.state != "failed"]
    found: dict[str, TrialRecord] = {}
    for judged in filter(None, (_judge(study, record, budget) for study, record in own)):
        digest = judged.policy.digest
        if digest not in found or (found[digest].state, judged.state) == ("pruned", "complete"):
            found[digest] = judged
    return list(found.values())


def _judge(study: str, record: TrialRecord, budget: Budget) -> TrialRecord | None:
    reason = f"measured as trial {record.number} of {study}"
    if record.state == "complete" and budget.unmeasured(record.measurement):
        return None
    if record.state == "pruned":
        exceeded = _exceeded(record, budget)
        if not exceeded:
            return None
        reason = f"{' and '.join(exceeded)} over the budget; {reason}"
    return replace(record, kind="imported", reason=reason, violations=budget.violations(record.measurement), seconds={})


def _exceeded(record: TrialRecord, budget: Budget) -> list[str]:
    """Limits that are broken for sure: an accuracy of a trial that was stopped is one of few examples, so its error counts."""
    figures = record.measurement
    if figures.accuracy_drop is not None:
        least = figures.accuracy_drop - SURE_SPREADS * (figures.accuracy_drop_spread or 0.0)
        figures = replace(figures, accuracy_drop=least)
    return [name for name, excess in budget.violations(figures).items() if excess > 0]
