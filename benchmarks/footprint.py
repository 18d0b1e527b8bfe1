"""What a deployment costs besides an inference: `python -m benchmarks.footprint`.

FP32, INT8, INT4 and 70 % sparse files of ResNet-20 and EfficientNet-Lite0: bytes of the file, memory and load time in fresh
processes. The order of the files changes from round to round; `load_ms_range` is that of the rounds' medians.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from autocompress.budget import Footprint
from autocompress.policy import LayerPolicy, Policy
from benchmarks.workbench import Workbench, publish, workbench

OPTIONS = {
    "int8": LayerPolicy("int8", 8),
    "int4": LayerPolicy("int4", 4),
    "int8, 70 % sparse": LayerPolicy("int8", 8, "sparse", 0.7),
}
ROUNDS, PROCESSES = 3, 3


def rows(bench: Workbench, model: str) -> list[dict[str, Any]]:
    """Every file of one model."""
    files = {"fp32": bench.graph.path}
    for name, option in OPTIONS.items():
        policy = Policy(dict.fromkeys(bench.graph.layers, option))
        files[name] = bench.build(policy, bench.compress(policy), name).artifact.path
    found: dict[str, list[Footprint]] = {name: [] for name in files}
    for number in range(ROUNDS):
        for name in random.Random(number).sample(list(files), len(files)):
            found[name].append(bench.device.footprint(files[name], bench.evaluator.inputs("example"), PROCESSES))
    return [_row(model, name, files[name], found[name], found["fp32"]) for name in files]


def _row(model: str, name: str, path: Path, found: list[Footprint], fp32: list[Footprint]) -> dict[str, Any]:
    figures, reference = _medians(found), _medians(fp32)
    loads = [footprint.load_ms for footprint in found]
    row = {
        "model": model,
        "file": name,
        "size_bytes": path.stat().st_size,
        **figures,
        "load_ms_range": [min(loads), max(loads)],
    }
    row |= {f"{key}_to_fp32": figures[key] / reference[key] for key in ("memory_bytes", "load_ms")}
    sys.stdout.write(f"{json.dumps(row)}\n")
    return row


def _medians(found: list[Footprint]) -> dict[str, float]:
    figures = [asdict(footprint) for footprint in found]
    return {name: median(each[name] for each in figures) for name in figures[0]}


def main() -> None:
    """Both models."""
    found: list[dict[str, Any]] = []
    for model, experiment in (("resnet20", "cifar10_resnet20"), ("efficientnet_lite0", "imagenet_efficientnet_lite0")):
        with workbench(f"+experiment={experiment}", "pruner=[sparse]", "data.search_size=100", "data.report_size=100") as bench:
            found += rows(bench, model)
    publish("footprint", found)


if __name__ == "__main__":
    main()
