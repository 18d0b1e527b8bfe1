from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from autocompress.measuring import lease, runner
from autocompress.measuring.fingerprint import device_name
from autocompress.measuring.runner import COMPANION_FILES, Runner, load_module, load_session, serve
from autocompress.measuring.timing import MIN_OPENINGS, MIN_OPENINGS_ABOVE, ROUNDS

if TYPE_CHECKING:
    from tests.conftest import Tiny

# --- requests ---

SESSION = """
import json, os

def version():
    os.write(1, b"a runtime that talks on standard output")
    print("and once more", flush=True)
    return "spy 1.0"

def load(path, threads, optimize, providers):
    def run(inputs):
        with open(path, "a") as file:
            file.write(json.dumps([threads, optimize, providers, len(inputs[0]), len(os.sched_getaffinity(0))]) + "\\n")
        return [inputs[0] * 2, inputs[0]]
    return run

def integer_nodes(path, inputs, providers):
    raise ValueError(f"{len(inputs[0])} example")
"""
"""A runtime that writes down how it was called, into the model file."""


BRIEF = {"seconds": 0, "precision": 0.0}


@pytest.fixture
def spy(tmp_path: Path) -> Runner:
    (tmp_path / "session.py").write_text(SESSION, encoding="utf-8")
    np.save(tmp_path / "inputs.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    return Runner(load_module(str(tmp_path / "session.py")), {"providers": ["x"]})


def calls(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_outputs_are_computed_in_batches_and_only_the_first_is_kept(spy: Runner, tmp_path: Path) -> None:
    inputs, saved = str(tmp_path / "inputs.npy"), str(tmp_path / "outputs.npy")
    count = spy.outputs(str(tmp_path / "model"), inputs, saved, start=1, stop=9, batch=3, threads=2, optimize=False)
    assert count == 8
    np.testing.assert_array_equal(np.load(saved), 2 * np.load(inputs)[1:9])
    assert [call[:4] for call in calls(tmp_path / "model")] == [[2, False, ["x"], size] for size in (3, 3, 2)]


def test_latency_is_timed_on_one_example_on_as_many_cores_as_threads(spy: Runner, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    paths = [str(tmp_path / name) for name in ("reference", "candidate", "another", "inputs.npy")]
    found = spy.latencies(paths[0], paths[1:3], paths[3], threads=1, batch=1, effort=BRIEF, lease_log="")
    assert [figures["openings"] for figures in found] == [MIN_OPENINGS, MIN_OPENINGS]
    for name in ("reference", "candidate", "another"):
        assert {json.dumps(call) for call in calls(tmp_path / name)} == {json.dumps([1, True, ["x"], 1, 1])}
    environment = spy.environment(threads=1)
    assert {figures["environment"] for figures in found} == {environment["id"]}
    assert {figures["device"] for figures in found} == {device_name()}
    assert found[0]["load"] == pytest.approx(environment["load"], abs=1)
    assert os.sched_getaffinity(0) == before


def test_cores_come_back_when_timing_fails(spy: Runner, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(OSError, match="no-such-folder"):
        spy.latencies(str(tmp_path / "no-such-folder" / "a"), ["b"], str(tmp_path / "inputs.npy"), 1, 1, BRIEF, "")
    assert os.sched_getaffinity(0) == before
    with lease.lease(lease.lease_path()):
        pass  # and so does the device


def test_a_batch_repeats_the_example(spy: Runner, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("reference", "candidate", "inputs.npy")]
    spy.latencies(paths[0], paths[1:2], paths[2], threads=1, batch=4, effort=BRIEF, lease_log="")
    assert {call[3] for call in calls(tmp_path / "candidate")} == {4}


def test_a_failing_request_is_answered_and_the_next_one_too(spy: Runner, tmp_path: Path) -> None:
    asked = [
        {"do": "integer_nodes", "path": "model", "inputs": str(tmp_path / "inputs.npy")},
        {"do": "dance"},
        {"do": "describe"},
    ]
    answers = io.StringIO()
    serve(spy, io.StringIO("".join(json.dumps(request) + "\n" for request in asked)), answers)
    failed, unknown, described = (json.loads(line) for line in answers.getvalue().splitlines())
    assert failed["error"] == "ValueError: 1 example"
    assert "Traceback" in failed["trace"]
    assert "dance" in unknown["error"]
    assert described == {"ok": {"device": device_name(), "runtime": "spy 1.0"}}


def test_what_the_runtime_prints_does_not_mix_with_the_answers(spy: Runner, tmp_path: Path) -> None:
    command = [sys.executable, "-P", runner.__file__, str(tmp_path / "session.py"), "{}", *map(str, COMPANION_FILES)]
    done = subprocess.run(command, input='{"do": "describe"}\n', capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ok"]["runtime"] == "spy 1.0"
    assert "talks on standard output" in done.stderr
    assert "and once more" in done.stderr


def test_ends_in_the_middle_of_a_measurement_when_nobody_reads_the_answer(tiny: Tiny, calibration_file: Path) -> None:
    target, path = tiny.components.target, str(tiny.graph.path)
    command = [sys.executable, "-P", runner.__file__, str(target.session_file)]
    command += [json.dumps(target.options()), *map(str, COMPANION_FILES)]
    asked = {"do": "latencies", "reference": path, "candidates": [path], "inputs": str(calibration_file)}
    limits = {"threads": 1, "batch": 1, "effort": {"seconds": 60, "precision": 0}, "lease_log": ""}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"do": "describe"}) + "\n" + json.dumps({**asked, **limits}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(5) == 1


# --- it runs without autocompress ---

ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("autocompress", "autocompress_plugins", "torch", "onnx", "optuna", "hydra"):
            raise ImportError(f"{name} is not on this device")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_runner_and_session_need_neither_autocompress_nor_torch(tiny: Tiny, calibration_file: Path, tmp_path: Path) -> None:
    """What is copied to another device: the runner's files, the session module, numpy and the runtime."""
    target = tiny.components.target
    script, *companions = [str(shutil.copy(path, tmp_path)) for path in (runner.__file__, *COMPANION_FILES)]
    options = json.dumps(target.options())
    command = [sys.executable, "-P", "-c", ALONE, script, str(target.session_file), options, *companions]
    path, inputs = str(tiny.graph.path), str(calibration_file)
    how = {"threads": 1, "batch": 1, "effort": {"seconds": 0, "precision": 1, "ratio_limit": 1e-3}, "lease_log": ""}
    asked = [
        {"do": "describe"},
        {"do": "integer_nodes", "path": path, "inputs": inputs},
        {"do": "latencies", "reference": path, "candidates": [path], "inputs": inputs, **how},
    ]
    requests = "".join(json.dumps(request) + "\n" for request in asked)
    done = subprocess.run(command, input=requests, capture_output=True, text=True, check=True)
    described, nodes, timed = (json.loads(line)["ok"] for line in done.stdout.splitlines())
    assert described["runtime"].startswith("onnxruntime 1.")
    assert nodes == []
    assert timed[0]["openings"] == MIN_OPENINGS_ABOVE
    assert timed[0]["rounds"] >= ROUNDS[0] * MIN_OPENINGS_ABOVE


def test_a_session_opens_a_file_in_this_process(tiny: Tiny) -> None:
    images = tiny.task.sets["search"].inputs[:3]
    run = load_session(tiny.components.target, tiny.graph.path, threads=1)
    with torch.no_grad():
        expected = tiny.task.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run([images])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_session_module_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"session\.txt is not a Python file"):
        load_module(str(tmp_path / "session.txt"))
