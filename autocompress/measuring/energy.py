"""Energy of an inference, by counters of the processor.

Self-contained: standard library only, since it travels with the runner.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Run = Callable[[Sequence[Any]], list[Any]]

SECONDS = 1.0
WARM_UP_SECONDS = 0.1
POWERCAP = "/sys/class/powercap"


def joules_per_inference(run: Run, inputs: Sequence[Any], folder: str = POWERCAP, seconds: float = SECONDS) -> dict[str, Any]:
    """Energy of one inference by the processor's counters (RAPL) before and after a loop: all that the packages spent in it.

    Returns:
        `joules`, None where no counter can be read, and the `reason` why.
    """
    try:
        zones = energy_zones(Path(folder))
        ranges = [_microjoules(zone / "max_energy_range_uj") for zone in zones]
        _repeat(run, inputs, WARM_UP_SECONDS)
        before = [_microjoules(zone / "energy_uj") for zone in zones]
        calls = _repeat(run, inputs, seconds)
        after = [_microjoules(zone / "energy_uj") for zone in zones]
    except OSError as error:
        return {"joules": None, "reason": f"no energy counter: {error.filename}: {error.strerror}"}
    spent = sum((end - start) % full for start, end, full in zip(before, after, ranges, strict=True))
    if not spent:
        return {"joules": None, "reason": f"the energy counters in {folder} stand still"}
    return {"joules": spent / 1e6 / calls, "reason": ""}


def energy_zones(folder: Path) -> list[Path]:
    """The packages, and their memory where it is counted apart; other zones are parts of these or count them once more.

    Raises:
        FileNotFoundError: there is none.
    """
    names = {zone: (zone / "name").read_text(encoding="utf-8").strip() for zone in sorted(folder.glob("intel-rapl:*"))}
    zones = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
    if not zones:
        raise FileNotFoundError(errno.ENOENT, "no package of RAPL here", str(folder))
    return zones


def _microjoules(counter: Path) -> int:
    return int(counter.read_text(encoding="ascii"))


def _repeat(run: Run, inputs: Sequence[Any], seconds: float) -> int:
    """Run for at least so long; returns the calls."""
    end, calls = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        run(inputs)
        calls += 1
    return calls
