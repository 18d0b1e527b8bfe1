from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from autocompress.budget import Budget
from autocompress.building.candidate import Candidate
from autocompress.errors import ConnectionLostError, RuntimeCrashError, UnreachableError
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.measuring.fingerprint import device_name
from autocompress.measuring.timing import MIN_OPENINGS, MIN_OPENINGS_ABOVE
from autocompress.policy import LayerPolicy, Policy
from autocompress.transport import LocalTransport

if TYPE_CHECKING:
    from tests.conftest import Tiny

BRIEFLY = TimingSettings(seconds=0.5, precision=0.01)
LONG = TimingSettings(seconds=60, precision=0.0)


@pytest.fixture
def fresh(tiny: Tiny) -> Iterator[Device]:
    """A device that a test may crash."""
    with open_device(tiny.components.target, threads=1) as opened:
        yield opened


def process(device: Device) -> int:
    """Its process, which a request has started."""
    assert device._process is not None
    return device._process.pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- requests ---


def test_describes_machine_and_runtime(device: Device) -> None:
    assert device.describe() == {"device": device_name(), "runtime": f"onnxruntime {onnxruntime.__version__}"}


@pytest.mark.parametrize(("start", "stop", "batch"), [(0, 128, 32), (5, 12, 3), (127, 128, 64)])
def test_outputs_are_those_of_the_runtime(
    tiny: Tiny, device: Device, calibration_file: Path, start: int, stop: int, batch: int
) -> None:
    session = onnxruntime.InferenceSession(tiny.graph.path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": np.load(calibration_file)[start:stop]})[0]
    found = device.outputs(tiny.graph.path, calibration_file, start, stop, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert [path.name for path in calibration_file.parent.glob("*.npy")] == ["calibration.npy"]  # nothing is left behind


@pytest.mark.timing
def test_the_same_file_timed_against_itself_is_equally_fast(tiny: Tiny, device: Device, calibration_file: Path) -> None:
    found = device.latency(tiny.graph.path, tiny.graph.path, calibration_file, BRIEFLY)
    assert 0.9 < found.ratio < 1.1
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.median_ms == pytest.approx(found.reference_median_ms, rel=0.6)
    assert 0 < found.median_ms <= found.p95_ms
    assert found.openings >= MIN_OPENINGS
    assert found.device == device_name()
    assert found.environment == device.environment()["id"]


def test_files_timed_together_come_back_in_their_order(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Callable[[Policy], Candidate]
) -> None:
    small = build_tiny(Policy({name: LayerPolicy("int8", 8) for name in tiny.graph.layers})).artifact.path
    whole, alone = device.latencies(
        tiny.graph.path, [tiny.graph.path, small], calibration_file, BRIEFLY, Budget(latency_ratio=1e-3)
    )
    assert whole.openings == alone.openings == MIN_OPENINGS_ABOVE, "both are far above the limit"
    assert whole.reference_median_ms == alone.reference_median_ms
    assert whole.ratio_low > 1e-3


def test_integer_nodes_of_a_file(
    tiny: Tiny, device: Device, calibration_file: Path, build_tiny: Callable[[Policy], Candidate]
) -> None:
    inner = build_tiny(Policy({"inner.0": LayerPolicy("int8", 8)})).artifact.path
    assert device.integer_nodes(inner, calibration_file) == {tiny.graph.layers["inner.0"].node}
    assert device.integer_nodes(tiny.graph.path, calibration_file) == set()


# --- what goes wrong ---


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x0cautocompress" + bytes(100)])
def test_a_corrupt_file_is_an_error_of_one_line_and_no_crash(
    fresh: Device, calibration_file: Path, tmp_path: Path, content: bytes
) -> None:
    fresh.describe()
    before, path = process(fresh), tmp_path / "corrupt.onnx"
    path.write_bytes(content)
    for ask in (
        lambda: fresh.outputs(path, calibration_file, 0, 1, 1),
        lambda: fresh.integer_nodes(path, calibration_file),
        lambda: fresh.latency(path, path, calibration_file, BRIEFLY),
    ):
        with pytest.raises(RuntimeCrashError, match=r"^target onnxruntime: (outputs|integer_nodes|latencies): ") as error:
            ask()
        assert "corrupt.onnx" in str(error.value)
        assert "\n" not in str(error.value)
    assert fresh.describe()
    assert process(fresh) == before


def test_inputs_that_do_not_fit_are_an_error_of_one_line(tiny: Tiny, fresh: Device, tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(RuntimeCrashError, match=r"^target onnxruntime: outputs: InvalidArgument: ") as error:
        fresh.outputs(tiny.graph.path, tmp_path / "inputs.npy", 0, 2, 2)
    assert "Got: 3 Expected: 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_crash_between_requests_is_reported_once_and_repaired(fresh: Device) -> None:
    expected = fresh.describe()
    before = process(fresh)
    os.kill(before, signal.SIGSEGV)
    with pytest.raises(
        RuntimeCrashError, match=r"^target onnxruntime: the runtime's process ended \(signal 11\) while asked to describe$"
    ):
        fresh.describe()
    assert fresh.describe() == expected
    assert process(fresh) != before


def test_a_crash_during_a_request_is_reported_and_repaired(tiny: Tiny, fresh: Device, calibration_file: Path) -> None:
    expected = fresh.describe()
    timer = threading.Timer(0.3, os.kill, (process(fresh), signal.SIGSEGV))
    timer.start()
    with pytest.raises(RuntimeCrashError, match=r"process ended \(signal 11\) while asked to latencies$"):
        fresh.latency(tiny.graph.path, tiny.graph.path, calibration_file, LONG)
    timer.join()
    assert fresh.describe() == expected


def test_what_somebody_killed_is_asked_once_more(tiny: Tiny, fresh: Device) -> None:
    expected = fresh.describe()
    before = process(fresh)
    os.kill(before, signal.SIGKILL)
    assert fresh.describe() == expected
    assert process(fresh) != before


def test_what_is_killed_twice_crashed(tiny: Tiny) -> None:
    class Doomed(Device):
        def _exchange(self, request: str) -> str:
            os.kill(self._running().pid, signal.SIGKILL)
            return super()._exchange(request)

    with pytest.raises(RuntimeCrashError, match=r"process ended \(signal 9\) while asked to describe$"):
        Doomed(tiny.components.target, 1).describe()


def test_a_full_disk_is_no_crash_of_the_runtime(tiny: Tiny, fresh: Device, calibration_file: Path) -> None:
    full: dict[str, object] = {"inputs": calibration_file, "start": 0, "stop": 2, "batch": 2, "threads": 1, "optimize": True}
    with pytest.raises(OSError, match="No space left on device"):
        fresh._ask("outputs", Path("/dev/full"), path=tiny.graph.path, **full)


def test_a_runtime_that_exits_is_reported_with_its_status(tiny: Tiny, tmp_path: Path) -> None:
    class Quitter(type(tiny.components.target)):  # type: ignore[misc]
        session_file = tmp_path / "session.py"

    Quitter.session_file.write_text("raise SystemExit(7)", encoding="utf-8")
    with (
        open_device(Quitter(), threads=1) as device,
        pytest.raises(RuntimeCrashError, match=r"process ended \(status 7\) while asked to describe$"),
    ):
        device.describe()


INTERRUPTED = """
import signal, sys, threading
from pathlib import Path
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime
from autocompress.measuring.device import TimingSettings, open_device

path, inputs = map(Path, sys.argv[1:])
with open_device(OnnxRuntime(), threads=1) as device:
    expected = device.describe()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    try:
        device.latency(path, path, inputs, TimingSettings(seconds=60, precision=0.0))
    except KeyboardInterrupt:
        print(device.describe() == expected)
"""


def test_an_interrupted_request_leaves_no_answer_behind(tiny: Tiny, calibration_file: Path) -> None:
    """Ctrl-C in the middle of a measurement: the next request must not read the answer to this one."""
    command = [sys.executable, "-c", INTERRUPTED, str(tiny.graph.path), str(calibration_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


class Shy(LocalTransport):
    """A machine whose connection is lost a few times: before a file is sent, and while a request is answered."""

    here = False

    def __init__(self) -> None:
        self.unsent, self.closed = 1, 0

    def send(self, path: Path) -> str:
        if self.unsent:
            self.unsent -= 1
            raise ConnectionLostError("shy")
        return super().send(path)

    def is_lost(self, status: int) -> bool:
        return status == -signal.SIGKILL

    def close(self) -> None:
        self.closed += 1


def test_a_request_is_made_again_when_the_connection_is_lost(tiny: Tiny, calibration_file: Path) -> None:
    transport = Shy()
    with open_device(tiny.components.target, 1, transport) as device:
        expected = device.describe()
        timer = threading.Timer(0.8, lambda: os.kill(process(device), signal.SIGKILL))
        timer.start()
        assert device.latency(tiny.graph.path, tiny.graph.path, calibration_file, TimingSettings(1.0, 0.0)).ratio > 0
        timer.join()
        assert transport.closed == 2, "each time everything is opened anew"
        assert device.describe() == expected
    assert transport.closed == 3


def test_a_lost_connection_that_does_not_come_back_is_told(tiny: Tiny) -> None:
    with open_device(tiny.components.target, 1, Shy(), patience=0) as device:
        device.describe()
        os.kill(process(device), signal.SIGKILL)
        message = r"^target onnxruntime: the connection was lost while asked to describe; tried"
        with pytest.raises(UnreachableError, match=message):
            device.describe()


# --- the process ---


def test_the_process_ends_with_the_device(tiny: Tiny) -> None:
    with open_device(tiny.components.target, threads=1) as device:
        device.describe()
        pid = process(device)
        assert is_alive(pid)
    assert not is_alive(pid)
    device.close()  # a second time is no error


def test_ctrl_c_does_not_reach_the_process_before_the_search(fresh: Device) -> None:
    fresh.describe()
    assert os.getsid(process(fresh)) != os.getsid(0)
