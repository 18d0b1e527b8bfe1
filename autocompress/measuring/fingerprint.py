"""What a latency depends on besides the file.

Self-contained: standard library only, since it travels with the runner.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

FLAGS = frozenset(
    {
        *("sse4_2", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
        *("avx512f", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "rvv"),
    }
)
"""Instructions that kernels of neural networks are chosen by."""

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def device_name() -> str:
    """Processor model and machine type, for people."""
    return f"{_cpuinfo('model name') or platform.processor() or 'CPU'} ({platform.machine()})"


def fingerprint(threads: int, runtime: str) -> dict[str, Any]:
    """The environment of a measurement; `id` tells two of them apart, whatever the load is (None: not known here)."""
    fixed = {
        "device": device_name(),
        "flags": sorted(FLAGS & set(f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split())),
        "cores": os.cpu_count(),
        "governor": GOVERNOR.read_text(encoding="utf-8").strip() if GOVERNOR.exists() else None,
        "system": f"{platform.system()} {platform.release()}",
        "threads": threads,
        "runtime": runtime,
    }
    digest = hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:8]
    return {"id": digest, **fixed, "load": load()}


def load() -> float | None:
    """Processes that wanted to run, mean of the last minute; None: not known here."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpuinfo(key: str) -> str:
    """The first processor's entry."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
