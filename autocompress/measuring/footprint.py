"""What a file costs the process that loads it: memory and time.

Self-contained: standard library and numpy only, since it travels with the runner.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Sequence[Any]], list[Any]]

RELOADS = 3


def measure(load: Callable[[], Run], example: Sequence[Any]) -> dict[str, Any]:
    """Memory and time that loading a file and its first inference take from this process, and what loading takes later.

    Returns:
        The fields of `autocompress.budget.Footprint`.
    """
    first = _first_use(load, example)
    reloads = [_timed(load)[1] for _ in range(RELOADS)]
    return {**first, "reload_ms": float(np.median(reloads))}


def _first_use(load: Callable[[], Run], example: Sequence[Any]) -> dict[str, Any]:
    empty = peak_bytes(forget=True)
    run, load_ms = _timed(load)
    _, first_inference_ms = _timed(lambda: run(example))
    peak = peak_bytes()
    grown = None if empty is None or peak is None else peak - empty
    return {"memory_bytes": grown, "process_bytes": peak, "load_ms": load_ms, "first_inference_ms": first_inference_ms}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its milliseconds."""
    start = time.perf_counter_ns()
    found = work()
    return found, (time.perf_counter_ns() - start) / 1e6


def peak_bytes(forget: bool = False) -> int | None:
    """Peak resident memory of this process; None where the system does not tell.

    Not `ru_maxrss`, which a process inherits from the one that started it.

    Args:
        forget: begin a new peak at what is resident now, where the system allows it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    with contextlib.suppress(OSError):
        if forget:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return 1024 * int(fields["VmHWM"].split()[0]) if "VmHWM" in fields else None
