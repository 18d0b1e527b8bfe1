"""How activation ranges are found: `python -m benchmarks.methods_observers resnet20`.

All layers INT8 with moment matching, on the report set; nothing but the observer differs between rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from autocompress.components import Observer
from autocompress.policy import LayerPolicy, Policy
from autocompress.registry import load_registry
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from benchmarks.workbench import Workbench, publish, workbench

OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy", "global")

EXPERIMENTS = {"resnet20": "cifar10_resnet20", "efficientnet_lite0": "imagenet_efficientnet_lite0"}


def observer(name: str) -> Observer:
    """One with its default settings."""
    found: Any = load_registry().component("observer", name)
    made: Observer = found()
    return made


def row(bench: Workbench, model: str, name: str) -> dict[str, Any]:
    """Figures of the INT8 file whose ranges this observer found."""
    components = replace(bench.components, observer=observer(name))
    start = time.perf_counter()
    calibration = Calibration(bench.task, bench.graph, components, bench.folder / name)
    policy = Policy(dict.fromkeys(bench.graph.layers, LayerPolicy("int8", 8)))
    compressed = LayerDatabase(bench.graph, calibration, components, {}).compress(policy)
    seconds = time.perf_counter() - start
    figures = bench.figures(bench.build(policy, compressed, name).artifact.path)
    return {"model": model, "observer": name, "seconds": seconds, **figures}


def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=EXPERIMENTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    found: list[dict[str, Any]] = []
    with workbench(f"+experiment={EXPERIMENTS[chosen.model]}") as bench:
        for name in OBSERVERS:
            found.append(row(bench, chosen.model, name))
            sys.stdout.write(f"{json.dumps(found[-1])}\n")
    publish(f"methods_observers_{chosen.model}", found)


if __name__ == "__main__":
    main()
