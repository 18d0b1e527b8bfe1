"""How many examples the tables of single options need: `python -m benchmarks.sensitivity resnet20 --half 128`.

The calibration examples are cut into two disjoint halves. Each half is used for everything: ranges, statistics, and the
examples that each option is run on. Spearman's rank correlation between both tables is reported for growing prefixes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autocompress.config import CONFIG_MODULE, job_from, register
from autocompress.display.progress import Progress
from autocompress.registry import load_registry
from autocompress.settings import Settings
from autocompress.task import Examples, Task
from autocompress.verbs import build_task
from autocompress.workspace import Workspace, open_workspace
from benchmarks.workbench import publish

EXPERIMENTS = {"resnet20": "cifar10_resnet20", "efficientnet_lite0": "imagenet_efficientnet_lite0"}
IMAGES = (8, 16, 32, 64, 128)


def composed(experiment: str, overrides: list[str], half: int) -> tuple[Task, Settings]:
    """The task with two halves of calibration examples, as the command line would make it."""
    registry = load_registry()
    register(registry)
    wanted = [f"+experiment={experiment}", f"data.calibration_size={2 * half}", "tracking=[]", *overrides]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job = job_from(compose("search", overrides=wanted), registry, Path())
    return build_task(job, job.settings, Progress()), job.settings


def with_calibration(task: Task, part: slice) -> Task:
    """The same task, calibrated on some of the examples."""
    whole = task.sets["calibration"]
    chosen = Examples(whole.inputs[part], whole.targets[part])
    return Task(task.model, task.example_input, chosen, task.sets["search"], task.sets["report"], task.metric, loss=task.loss)


def divergences(workspace: Workspace, path: Path) -> dict[str, NDArray[np.float64]]:
    """`parameter index` to the divergence on each calibration example, shape (examples,); FP32 is left out."""
    evaluator, found = workspace.bench.evaluator, {}
    evaluator.keep_reference(workspace.bench.graph, "calibration")
    count = len(evaluator.targets["calibration"])
    for name, options in workspace.space.sizes.items():
        for index in range(options):
            policy = workspace.space.alone(name, index)
            if policy.layers or policy.channels:
                workspace.bench.build(policy, path)
                outputs = evaluator.outputs(path, "calibration", 0, count)
                found[f"{name} {index}"] = evaluator.divergence(outputs, "calibration", 0, count)
    return found


def table(task: Task, settings: Settings) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """The table of one half, and what it took: wall seconds, and processor seconds of this process and the runtime's."""
    with tempfile.TemporaryDirectory() as name:
        with open_workspace(task, replace(settings, folder=Path(name)), Progress()) as workspace:
            start, ours = time.perf_counter(), time.process_time()
            found = divergences(workspace, Path(name) / "option.onnx")
            seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - ours}
        seconds["cpu_seconds"] += os.times().children_user + os.times().children_system
    return found, seconds


def agreement(first: dict[str, NDArray[np.float64]], second: dict[str, NDArray[np.float64]], images: int) -> dict[str, Any]:
    """Rank correlation over all options, and over the layers for each position in the option tables."""
    names = [name for name in first if name in second]
    means = [np.array([half[name][:images].mean() for name in names]) for half in (first, second)]
    positions = np.array([int(name.rsplit(" ", 1)[1]) for name in names])
    each = {int(place): [values[positions == place] for values in means] for place in np.unique(positions)}
    return {
        "images": images,
        "options": len(names),
        "spearman": float(spearmanr(*means).statistic),
        "spearman_by_option": {place: float(spearmanr(*pair).statistic) for place, pair in each.items()},
    }


def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=EXPERIMENTS)
    parser.add_argument("--half", type=int, default=128, help="examples of each half")
    parser.add_argument("overrides", nargs="*", help="for example quantizer=[int8,int4] data.search_size=100")
    chosen = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    task, settings = composed(EXPERIMENTS[chosen.model], chosen.overrides, chosen.half)
    halves = [slice(0, chosen.half), slice(chosen.half, 2 * chosen.half)]
    (first, seconds), (second, _) = (table(with_calibration(task, part), settings) for part in halves)
    rows = [agreement(first, second, images) for images in IMAGES if images <= chosen.half]
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")
    publish(f"sensitivity_{chosen.model}", {"half": chosen.half, **seconds, "agreement": rows})


if __name__ == "__main__":
    main()
