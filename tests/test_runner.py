from __future__ import annotations

import gc
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from autocompress import runner
from autocompress.runner import BLOCK_SECONDS, MIN_ROUNDS, Runner, device_name, interleave, load_module, load_session, serve

if TYPE_CHECKING:
    from tests.conftest import Tiny

Run = Callable[[Sequence[Any]], list[Any]]


def sleeps(*seconds: float, calls: list[str] | None = None, name: str = "") -> Run:
    """A model that takes these times in turn."""
    count = 0

    def run(inputs: Sequence[Any]) -> list[Any]:
        nonlocal count
        if calls is not None:
            calls.append(name)
        time.sleep(seconds[count % len(seconds)])
        count += 1
        return []

    return run


# --- timing ---


def test_timing_of_known_durations() -> None:
    (found,) = interleave([sleeps(0.02), sleeps(0.04)], [], seconds=0, precision=0.0)
    assert 1.4 < found["ratio"] < 2.2
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert 20 <= found["reference_median_ms"] < 40
    assert 40 <= found["median_ms"] < 80
    assert found["median_ms"] <= found["p95_ms"]
    assert found["rounds"] == MIN_ROUNDS
    assert found["device"] == device_name()


def test_timing_finds_the_slow_tail_and_its_median_ignores_it() -> None:
    (found,) = interleave([sleeps(0.005), sleeps(*[0.005] * 9, 0.15)], [], seconds=0, precision=0.0)
    assert found["median_ms"] < 40 < found["p95_ms"]
    assert found["ratio"] < 3


def test_timing_stops_when_precise_or_when_the_time_is_over() -> None:
    start = time.perf_counter()
    (precise,) = interleave([sleeps(0.002), sleeps(0.002)], [], seconds=60, precision=10.0)
    assert precise["rounds"] == MIN_ROUNDS
    (limited,) = interleave([sleeps(0.002), sleeps(0.002)], [], seconds=1, precision=0.0)
    assert limited["rounds"] > MIN_ROUNDS
    assert limited["ratio_high"] - limited["ratio_low"] < 1
    assert time.perf_counter() - start < 10


def test_rounds_interleave_both_in_random_order() -> None:
    calls: list[str] = []
    interleave([sleeps(0.004, calls=calls, name="r"), sleeps(0.004, calls=calls, name="c")], [], seconds=0, precision=0.0)
    blocks = "".join(name for name, before in zip(calls, ["", *calls], strict=False) if name != before)
    warm_up, rounds = blocks[:2], blocks[2:]
    assert warm_up == "rc"
    assert len(rounds) > MIN_ROUNDS  # each round has both; equal neighbours melt together where the order turns
    assert len(rounds) < 2 * MIN_ROUNDS  # and it does turn


def test_several_files_are_timed_in_the_same_rounds() -> None:
    calls: list[str] = []
    names = {"r": 0.012, "a": 0.024, "b": 0.012}
    runs = [sleeps(seconds, calls=calls, name=name) for name, seconds in names.items()]
    slow, even = interleave(runs, [], seconds=0, precision=0.0)
    assert slow["rounds"] == even["rounds"] == MIN_ROUNDS
    assert 1.3 < slow["ratio"] < 2.2
    assert 0.7 < even["ratio"] < 1.4
    assert slow["reference_median_ms"] == even["reference_median_ms"]
    rounds = ["".join(calls[-3 * (index + 1) : len(calls) - 3 * index]) for index in range(MIN_ROUNDS)]  # a call each
    assert {"".join(sorted(order)) for order in rounds} == {"abr"}
    assert len(set(rounds)) > 2


def test_several_files_have_as_many_rounds_as_one() -> None:
    runs = [sleeps(0.01)] * 4
    alone, together = interleave(runs[:2], [], 1.0, precision=0.0)[0], interleave(runs, [], 1.0, precision=0.0)[0]
    assert together["rounds"] == pytest.approx(alone["rounds"], rel=0.35)


def test_a_ratio_above_the_limit_for_sure_is_not_timed_on() -> None:
    runs = [sleeps(0.004), sleeps(0.008)]
    (over,) = interleave(runs, [], seconds=0.8, precision=0.0, limit=0.5)
    assert over["rounds"] == MIN_ROUNDS
    assert 1.3 < over["ratio"] < 2.2, "stopping early changes how sure a figure is, not the figure"
    assert over["ratio_low"] > 0.5
    (within,) = interleave(runs, [], seconds=0.8, precision=0.0, limit=5.0)
    assert within["rounds"] > 2 * MIN_ROUNDS


def test_each_of_several_files_must_be_known_well_enough() -> None:
    runs = [sleeps(0.004), sleeps(0.008), sleeps(0.001)]
    found = interleave(runs, [], seconds=0.6, precision=0.0, limit=1.2)
    assert [figures["rounds"] > MIN_ROUNDS for figures in found] == [True, True]


def test_a_block_holds_the_calls_that_fill_its_time() -> None:
    """Against the calls' own clock: a busy machine makes each call longer, and a block hold fewer of them."""
    durations: list[float] = []

    def run(_: Sequence[Any]) -> list[Any]:
        start = time.perf_counter()
        time.sleep(0.0005)
        durations.append(time.perf_counter() - start)
        return []

    calls = runner._warm_up(run, [])
    assert calls == pytest.approx(BLOCK_SECONDS / np.mean(durations), rel=0.3, abs=1)
    assert runner._warm_up(sleeps(2 * BLOCK_SECONDS), []) == 1


def fails(inputs: Sequence[Any]) -> list[Any]:
    if not gc.isenabled():  # not yet while it warms up
        raise RuntimeError("no")
    time.sleep(0.001)
    return []


def test_garbage_collection_is_off_while_timing_and_on_again_after_a_failure() -> None:
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match=r"^no$"):
        interleave([fails, fails], [], seconds=0, precision=0.0)
    assert gc.isenabled()


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
    found = spy.latencies(paths[0], paths[1:3], paths[3], threads=1, seconds=0, precision=0.0, limit=None)
    assert [figures["rounds"] for figures in found] == [MIN_ROUNDS, MIN_ROUNDS]
    for name in ("reference", "candidate", "another"):
        assert {json.dumps(call) for call in calls(tmp_path / name)} == {json.dumps([1, True, ["x"], 1, 1])}
    assert os.sched_getaffinity(0) == before


def test_cores_come_back_when_timing_fails(spy: Runner, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(OSError, match="no-such-folder"):
        spy.latencies(str(tmp_path / "no-such-folder" / "a"), ["b"], str(tmp_path / "inputs.npy"), 1, 0, 0.0, None)
    assert os.sched_getaffinity(0) == before


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
    command = [sys.executable, "-P", runner.__file__, str(tmp_path / "session.py"), "{}"]
    done = subprocess.run(command, input='{"do": "describe"}\n', capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ok"]["runtime"] == "spy 1.0"
    assert "talks on standard output" in done.stderr
    assert "and once more" in done.stderr


def test_device_is_named_for_people() -> None:
    assert device_name().endswith(f"({platform.machine()})")
    assert len(device_name()) > len(platform.machine()) + 3


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


def test_runner_and_session_need_neither_autocompress_nor_torch(tiny: Tiny, calibration_file: Path) -> None:
    """What is copied to another device: two files, numpy and the runtime."""
    target = tiny.components.target
    command = [sys.executable, "-P", "-c", ALONE, runner.__file__, str(target.session_file), json.dumps(target.options())]
    path, inputs = str(tiny.graph.path), str(calibration_file)
    limits = {"threads": 1, "seconds": 0, "precision": 1, "limit": None}
    asked = [
        {"do": "describe"},
        {"do": "integer_nodes", "path": path, "inputs": inputs},
        {"do": "latencies", "reference": path, "candidates": [path], "inputs": inputs, **limits},
    ]
    requests = "".join(json.dumps(request) + "\n" for request in asked)
    done = subprocess.run(command, input=requests, capture_output=True, text=True, check=True)
    described, nodes, timed = (json.loads(line)["ok"] for line in done.stdout.splitlines())
    assert described["runtime"].startswith("onnxruntime 1.")
    assert nodes == []
    assert timed[0]["rounds"] == MIN_ROUNDS


def test_a_session_opens_a_file_in_this_process(tiny: Tiny) -> None:
    images = tiny.task.sets["search"].inputs[:3]
    run = load_session(tiny.components.target, tiny.graph.path, threads=1)
    with torch.no_grad():
        expected = tiny.task.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run([images])[0], expected, rtol=1e-4, atol=1e-4)


def test_a_session_module_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"session\.txt is not a Python file"):
        load_module(str(tmp_path / "session.txt"))
