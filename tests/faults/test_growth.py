"""Trials leave nothing behind in the process of the search; `python -m benchmarks.growth` asks the same of five hundred."""

from __future__ import annotations

from pathlib import Path

from autocompress import Budget, LayerPolicy, Measurement, Policy
from autocompress.trials.trial import Bench, run_trial
from benchmarks.growth import Held, growth


def held(bench: Bench, folder: Path, trials: int) -> Held:
    """What the process has after so many trials with a real runtime."""
    for number in range(trials):
        path = folder / f"t{number:04d}.onnx"
        record, _ = run_trial(bench, Policy({"head": LayerPolicy("int8", 8)}), Budget(), lambda: [], number, "trial", path)
        assert record.state == "complete", record.reason
    return Held.now(trials)


def test_no_file_thread_or_child_grows_with_trials(bench: Bench, baseline: Measurement, tmp_path: Path) -> None:
    found = growth([held(bench, tmp_path, 2), held(bench, tmp_path, 4)])
    assert (found["files"], found["threads"], found["children"]) == (0, 0, 0)


def test_what_is_left_open_is_counted(tmp_path: Path) -> None:
    before = Held.now(0)
    with (tmp_path / "file").open("w"):
        assert growth([before, Held.now(1)])["files"] == 1
