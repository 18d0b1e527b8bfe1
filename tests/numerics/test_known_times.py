"""The whole way of a latency, process and all, for files that take a known time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime

from autocompress.measuring.device import Device, TimingSettings, open_device

SESSION = '''
"""A runtime whose models are the milliseconds that they take, and after how many calls one takes ten times as long."""

import time
from pathlib import Path

def version():
    return "stopwatch 1.0"

def load(path, threads, optimize, **_):
    milliseconds, seldom = map(float, Path(path).read_text().split())
    calls = 0

    def run(inputs):
        nonlocal calls
        calls += 1
        end = time.perf_counter_ns() + 1e6 * milliseconds * (10 if seldom and calls % seldom == 0 else 1)
        while time.perf_counter_ns() < end:
            pass
        return [inputs[0]]

    return run
'''


@dataclass
class Stopwatch(OnnxRuntime):
    """Runs the session above."""

    name: ClassVar[str] = "stopwatch"  # type: ignore[misc]
    script: str = ""

    @property
    def session_file(self) -> Path:
        return Path(self.script)


def others() -> bool:
    """Whether so much else runs here that no time is known."""
    return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    (tmp_path / "session.py").write_text(SESSION, encoding="utf-8")
    np.save(tmp_path / "inputs.npy", np.zeros((4, 2), np.float32))
    with open_device(Stopwatch(script=str(tmp_path / "session.py")), threads=1) as opened:
        yield opened


def written(folder: Path, milliseconds: float, seldom: int = 0) -> Path:
    path = folder / f"{milliseconds}-{seldom}.model"
    path.write_text(f"{milliseconds} {seldom}", encoding="utf-8")
    return path


@pytest.mark.timing
@pytest.mark.skipif(others(), reason="the machine is busy")
def test_latencies_and_ratios_are_the_known_ones(device: Device, tmp_path: Path) -> None:
    reference = written(tmp_path, 1.0)
    times = {0.25: 0.25, 1.0: 1.0, 1.05: 1.05, 3.0: 3.0}
    files = [written(tmp_path, ms) for ms in times]
    found = device.latencies(reference, files, tmp_path / "inputs.npy", TimingSettings(seconds=0.5))
    for latency, milliseconds in zip(found, times, strict=True):
        assert latency.median_ms == pytest.approx(milliseconds, rel=0.02, abs=0.005)
        assert latency.reference_median_ms == pytest.approx(1.0, rel=0.02)
        assert latency.ratio == pytest.approx(milliseconds, rel=0.02)
        assert latency.ratio_low - 0.005 <= milliseconds <= latency.ratio_high + 0.005


@pytest.mark.timing
@pytest.mark.skipif(others(), reason="the machine is busy")
def test_a_tail_is_in_the_percentile_and_not_in_the_median(device: Device, tmp_path: Path) -> None:
    """Every tenth call takes ten times as long, so a tenth of the calls is beyond the 90th percentile."""
    files = [written(tmp_path, 0.5, seldom=10)]
    (found,) = device.latencies(written(tmp_path, 0.5), files, tmp_path / "inputs.npy", TimingSettings(seconds=0.5))
    assert found.median_ms == pytest.approx(0.5, rel=0.02)
    assert found.p95_ms >= 5.0  # more where something else takes the core
