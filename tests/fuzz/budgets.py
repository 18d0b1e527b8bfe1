"""Budgets from Python: any value for any limit."""

from __future__ import annotations

import json

from autocompress import Budget, Measurement
from tests.fuzz.mutation import mutated_json
from tests.fuzz.target import Target

SEEDS = [
    {"size_ratio": 0.5, "latency_ms": 3, "accuracy_drop": 0.0, "latency_percentile": 95},
    {"size_bytes": 1000000, "latency_ratio": 1.5, "memory_bytes": 2**31, "load_ms": 1e3},
]
MEASURED = Measurement(1000, 0.5, 2.0, 0.9, 0.8, 0.01, 100, memory_bytes=5, load_ms=1.0)


def read(data: bytes) -> None:
    try:
        limits = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(limits, dict) or not set(limits) <= set(Budget.__dataclass_fields__):
        return
    budget = Budget(**limits)
    for name, excess in budget.violations(MEASURED).items():
        assert (excess <= 0) == (getattr(MEASURED, name) <= budget.limits()[name])


BUDGET = Target([json.dumps(seed).encode() for seed in SEEDS], read, mutated_json, runs=120_000)
