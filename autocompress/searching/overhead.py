"""Whether removing channels buys time here: a small model's time may be the runtime's overhead for each operator."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.record import TrialRecord

NOTEWORTHY_SHARE = 0.2
"""Multiply-accumulates that must be gone before a comparison says anything."""

POOR_RETURN = 0.25
"""Share of the removed work that must show up as time; below it, the time is spent on something else."""


def overhead_notes(records: Sequence[TrialRecord]) -> list[str]:
    """A line for the person when the trial with the fewest operations is hardly faster than the same without cuts."""
    pairs = [(cut, whole) for cut in records for whole in records if _differ_in_channels_only(cut, whole)]
    pairs = [(cut, whole) for cut, whole in pairs if _macs_saved(cut, whole) >= NOTEWORTHY_SHARE]
    if not pairs:
        return []
    cut, whole = max(pairs, key=lambda pair: _macs_saved(*pair))
    work, time = _macs_saved(cut, whole), _time_saved(cut, whole)
    if time >= POOR_RETURN * work:
        return []
    return [
        f"removing channels gains next to nothing here: trial {cut.number} computes {work:.0%} fewer multiply-accumulates than "
        f"trial {whole.number} and takes {time:.0%} less time; the rest is the runtime's overhead for each operator"
    ]


def _differ_in_channels_only(cut: TrialRecord, whole: TrialRecord) -> bool:
    measured = cut.measurement.latency_ratio is not None and whole.measurement.latency_ratio is not None
    return measured and bool(cut.policy.channels) and not whole.policy.channels and cut.policy.layers == whole.policy.layers


def _macs_saved(cut: TrialRecord, whole: TrialRecord) -> float:
    left, all_of_it = (sum(row.macs for row in record.layers) for record in (cut, whole))
    return 1 - left / max(1, all_of_it)


def _time_saved(cut: TrialRecord, whole: TrialRecord) -> float:
    return 1 - (cut.measurement.latency_ratio or 0.0) / (whole.measurement.latency_ratio or 1.0)
