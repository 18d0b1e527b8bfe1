"""What a trial is called for people: its number first, then what was done and what came out of it."""

from __future__ import annotations

from autocompress.display.progress import describe_policy
from autocompress.quality import Quality
from autocompress.record import TrialRecord


def trial_name(record: TrialRecord, quality: Quality) -> str:
    """`t0042 4.7b s35 0.41x accuracy 88.1%`: number, mean bits, sparsity, latency ratio and the metric; sorts by number."""
    measured = record.measurement
    score = "" if measured.accuracy is None else f"{quality.metric} {quality.value(measured.accuracy, 1)}"
    parts = [
        f"t{record.number:04d}",
        describe_policy(record) if record.layers else "",
        "" if measured.latency_ratio is None else f"{measured.latency_ratio:.2f}x",
        score if record.state == "complete" else f"{record.state} at {record.gate}",
    ]
    return " ".join(part for part in parts if part)
