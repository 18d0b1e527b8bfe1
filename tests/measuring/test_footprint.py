"""Memory and load time of a file in a fresh process, against figures from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.budget import Footprint
from autocompress.errors import RuntimeCrashError
from autocompress.measuring.device import Device, open_device

if TYPE_CHECKING:
    from tests.conftest import Tiny

MEGABYTE = 1_000_000

ALONE = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"input": numpy.load(sys.argv[2])[:1]})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""A program that loads a file, runs it once, and prints its own peak in kB."""


@pytest.fixture
def fresh(tiny: Tiny) -> Iterator[Device]:
    with open_device(tiny.components.target, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product with a matrix of 51.2 MB that takes the tiny network's inputs."""
    path = tmp_path_factory.mktemp("heavy") / "heavy.onnx"
    weight = np.random.default_rng(0).normal(size=(64, 200_000)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["output"])]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("input", ["n", 1, 8, 8]), ("output", ["n", 200_000]))
    ]
    graph = helper.make_graph(nodes, "heavy", *values, [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def figures(tiny: Tiny, device: Device, heavy: Path, calibration_file: Path) -> dict[str, Footprint]:
    files = {"tiny": tiny.graph.path, "heavy": heavy}
    return {name: device.footprint(path, calibration_file, processes=3) for name, path in files.items()}


def test_memory_holds_the_weights(figures: dict[str, Footprint]) -> None:
    tiny, heavy = figures["tiny"].memory_bytes, figures["heavy"].memory_bytes
    assert tiny is not None and heavy is not None
    assert 0 < tiny < 20 * MEGABYTE
    assert 51.2 * MEGABYTE < heavy - tiny < 6 * 51.2 * MEGABYTE


def test_the_peak_is_what_a_program_of_its_own_sees(
    figures: dict[str, Footprint], tiny: Tiny, heavy: Path, calibration_file: Path
) -> None:
    for name, path in (("tiny", tiny.graph.path), ("heavy", heavy)):
        command = [sys.executable, "-c", ALONE, str(path), str(calibration_file)]
        alone = 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        modules_of_the_runner = 10 * MEGABYTE
        assert figures[name].process_bytes == pytest.approx(alone, rel=0.1, abs=modules_of_the_runner)


def test_the_process_that_asks_does_not_count(figures: dict[str, Footprint]) -> None:
    """The peak that `getrusage` tells is inherited from the process that started this one."""
    ours = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    peak = figures["tiny"].process_bytes
    assert peak is not None and peak < 1024 * int(ours) / 2, "else this test shows nothing"


def test_a_large_file_takes_longer_to_load(figures: dict[str, Footprint]) -> None:
    tiny, heavy = figures["tiny"], figures["heavy"]
    assert heavy.load_ms > 2 * tiny.load_ms
    assert heavy.reload_ms > tiny.reload_ms
    assert all(figure > 0 for figure in (tiny.load_ms, tiny.reload_ms, tiny.first_inference_ms))


@pytest.mark.timing
def test_load_time_is_that_of_opening_a_session(figures: dict[str, Footprint], heavy: Path) -> None:
    import time

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    times = []
    for _ in range(5):
        start = time.perf_counter()
        onnxruntime.InferenceSession(heavy, options, providers=["CPUExecutionProvider"])
        times.append(1000 * (time.perf_counter() - start))
    assert figures["heavy"].reload_ms == pytest.approx(np.median(times), rel=0.5)


def test_each_load_has_a_process_of_its_own(tiny: Tiny, fresh: Device, calibration_file: Path) -> None:
    found = [fresh.footprint(tiny.graph.path, calibration_file, processes=1) for _ in range(2)]
    assert fresh._process is None, "the process that serves everything else has loaded files before"
    first, second = (footprint.memory_bytes for footprint in found)
    assert first == pytest.approx(second, rel=0.2), "a second load in one process would find everything allocated"


def test_a_file_that_does_not_load_is_told(fresh: Device, calibration_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(RuntimeCrashError, match=r"^target onnxruntime: footprint: .*corrupt\.onnx"):
        fresh.footprint(path, calibration_file, processes=1)
