"""How far a measured latency can be trusted: `python -m benchmarks.timing PART FOLDER`, parts in this order.

- `files`: ResNet-20, its INT8 file, and two files that are INT8 but for a few layers, built into the folder for the others.
- `self_check`: FP32 against itself, on an otherwise idle machine.
- `coverage`: one comparison 50 times while the other cores are busy, each time in a fresh process; how often does its 95 %
  interval hold the median of all 50?
- `order`: two files that differ by a few per cent, 20 times while the other cores are busy; is the slower one ever taken for
  the faster, be they timed together or apart?
- `lease`: two processes measure as often as they can; do any two of 100 measurements overlap?
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from autocompress.budget import Latency
from autocompress.measuring.device import TimingSettings, open_device
from autocompress.policy import LayerPolicy, Policy
from autocompress.registry import load_registry
from benchmarks.workbench import RESULTS, publish, workbench

REPEATS = {"self_check": 10, "coverage": 50, "order": 20, "lease": 50}
FLOAT_LAYERS = {"int8": (), "faster": (12,), "slower": (3, 5)}
"""Which of the layers stay in floating point."""


def build_files(folder: Path) -> None:
    """The files that are timed, and their input."""
    folder.mkdir(parents=True, exist_ok=True)
    with workbench("+experiment=cifar10_resnet20") as bench:
        shutil.copyfile(bench.graph.path, folder / "fp32.onnx")
        shutil.copyfile(bench.evaluator.inputs("example"), folder / "example.npy")
        for name, kept in FLOAT_LAYERS.items():
            layers = [layer for index, layer in enumerate(bench.graph.layers) if index not in kept]
            policy = Policy({layer: LayerPolicy("int8", 8) for layer in layers})
            shutil.copyfile(bench.build(policy, bench.compress(policy)).artifact.path, folder / f"{name}.onnx")


def measured(folder: Path, names: Sequence[str], timing: TimingSettings) -> list[Latency]:
    """Files against FP32, in a process of their own."""
    target: Any = load_registry().component("target", "onnxruntime")
    with open_device(target(), threads=1) as device:
        paths = [folder / f"{name}.onnx" for name in names]
        return device.latencies(folder / "fp32.onnx", paths, folder / "example.npy", timing)


@contextmanager
def busy() -> Iterator[None]:
    """Every core but the last, on which files are timed with one thread, spins."""
    cores = sorted(os.sched_getaffinity(0))[:-1]
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        for core, process in zip(cores, spinning, strict=True):
            os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def self_check(folder: Path) -> dict[str, Any]:
    """FP32 against itself."""
    found = [measured(folder, ["fp32"], TimingSettings())[0] for _ in range(REPEATS["self_check"])]
    ratios = [latency.ratio for latency in found]
    return {
        "ratios": ratios,
        "intervals": [[latency.ratio_low, latency.ratio_high] for latency in found],
        "furthest_from_1": max(abs(ratio - 1) for ratio in ratios),
        "resolution_median": median(latency.resolution for latency in found),
        "wandered": sum(latency.wander > 0 for latency in found),
        "loads": [latency.load for latency in found],
    }


def coverage(folder: Path) -> dict[str, Any]:
    """INT8 against FP32 beside a busy core."""
    with busy():
        found = [measured(folder, ["int8"], TimingSettings())[0] for _ in range(REPEATS["coverage"])]
    pooled = median(latency.ratio for latency in found)
    widths = [(latency.ratio_high - latency.ratio_low) / (2 * latency.ratio) for latency in found]
    return {
        "pooled": pooled,
        "covered": sum(latency.ratio_low <= pooled <= latency.ratio_high for latency in found),
        "repeats": len(found),
        "half_width_median": median(widths),
        "furthest_from_pooled": max(abs(latency.ratio / pooled - 1) for latency in found),
        "openings": [latency.openings for latency in found],
        "wandered": sum(latency.wander > 0 for latency in found),
        "ratios": [latency.ratio for latency in found],
        "intervals": [[latency.ratio_low, latency.ratio_high] for latency in found],
    }


def order(folder: Path) -> dict[str, Any]:
    """Two files beside a busy core."""
    with busy():
        found = [measured(folder, ["faster", "slower"], TimingSettings()) for _ in range(REPEATS["order"])]
    faster, slower = ([pair[index].ratio for pair in found] for index in (0, 1))
    return {
        "difference": median(slower) / median(faster) - 1,
        "inverted_together": sum(one >= other for one, other in zip(faster, slower, strict=True)),
        "inverted_apart": sum(one >= other for one in faster for other in slower),
        "pairs_apart": len(faster) * len(slower),
        "faster": faster,
        "slower": slower,
    }


def measure_often(folder: Path) -> None:
    """What each of the two processes does."""
    target: Any = load_registry().component("target", "onnxruntime")
    timing = TimingSettings(seconds=0.1, precision=1.0, lease_log=str(folder / "lease.jsonl"))
    with open_device(target(), threads=1) as device:
        for _ in range(REPEATS["lease"]):
            device.latency(folder / "fp32.onnx", folder / "int8.onnx", folder / "example.npy", timing)


def lease(folder: Path) -> dict[str, Any]:
    """Two processes at once."""
    log = folder / "lease.jsonl"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.timing", "measure_often", str(folder)]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    held = sorted((json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()), key=lambda entry: entry["start"])
    return {
        "measurements": len(held),
        "processes": len({entry["pid"] for entry in held}),
        "changes_of_holder": sum(one["pid"] != other["pid"] for one, other in pairwise(held)),
        "overlaps": sum(one["end"] > other["start"] for one, other in pairwise(held)),
        "seconds": held[-1]["end"] - held[0]["start"],
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "self_check": self_check,
    "coverage": coverage,
    "order": order,
    "lease": lease,
}


def main() -> None:
    """Run one part, and put its figures beside those of the others."""
    part, folder = sys.argv[1], Path(sys.argv[2])
    if part == "files":
        build_files(folder)
    elif part == "measure_often":
        measure_often(folder)
    else:
        path = RESULTS / "timing.json"
        known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
        publish("timing", known | {part: PARTS[part](folder)})


if __name__ == "__main__":
    main()
