"""A runtime that crashes, hangs, runs out of memory or computes nonsense costs one trial, and the next one is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from conftest import Stopwatch

from autocompress import Budget, LayerPolicy, Measurement, Policy, TrialRecord
from autocompress.trials.trial import Bench, run_trial


@dataclass
class StrangeRuntime(OnnxRuntime):
    """Computes with the bundled session module; its `marker` says that it is broken now."""

    marker: str = ""
    fault: str = ""

    @property
    def session_file(self) -> Path:
        return Path(__file__).with_name("strange_session.py")

    def options(self) -> dict[str, object]:
        inner = str(OnnxRuntime().session_file)
        return {**super().options(), "inner": inner, "marker": self.marker, "fault": self.fault}


@pytest.fixture
def broken(quick_bench: Bench, baseline: Measurement, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The bench on a runtime that is broken."""
    marker = tmp_path / "marker"
    marker.touch()
    device = Stopwatch(StrangeRuntime(marker=str(marker), fault=request.param), threads=1)
    yield replace(quick_bench, device=device, evaluator=replace(quick_bench.evaluator, device=device), trial_timeout=4.0)
    device.close()


def measured(bench: Bench, folder: Path) -> TrialRecord:
    path = folder / "t0000.onnx"
    return run_trial(bench, Policy({"head": LayerPolicy("int8", 8)}), Budget(), lambda: [], 0, "trial", path)[0]


REASONS = {
    "abort": "RuntimeCrashError: target onnxruntime: the runtime's process ended (signal 6) while asked to outputs",
    "exit": "RuntimeCrashError: target onnxruntime: the runtime's process ended (status 3) while asked to outputs",
    "memory": "RuntimeCrashError: target onnxruntime: outputs: ",
    "nan": "CheckError: the file gives NaN or infinity on calibration data",
    "rows": "CheckError: the file gives 31 outputs for 32 examples of the calibration set",
    "hang": "took longer than search.trial_timeout=4 seconds: ",
}


@pytest.mark.parametrize("broken", REASONS, indirect=True)
def test_a_broken_runtime_costs_one_trial(broken: Bench, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fault = request.node.callspec.params["broken"]
    before = set(psutil.Process().children(recursive=True))
    start = time.monotonic()
    record = measured(broken, tmp_path)
    assert (record.state, record.gate) == ("failed", "check")
    assert record.reason.startswith(REASONS[fault])
    assert record.given_up == (fault == "hang")
    assert time.monotonic() - start < 15
    (tmp_path / "marker").unlink()
    assert measured(broken, tmp_path).state == "complete"
    broken.device.close()
    assert set(psutil.Process().children(recursive=True)) <= before, "no process is left"


@pytest.mark.parametrize("broken", ["chatter"], indirect=True)
def test_what_a_runtime_prints_is_no_answer(broken: Bench, tmp_path: Path) -> None:
    assert measured(broken, tmp_path).state == "complete"
