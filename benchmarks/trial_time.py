"""What a trial costs against one pass of FP32 through PyTorch: `python -m benchmarks.trial_time`.

EfficientNet-Lite0, 300 search images, one thread. A trial is everything between asking and telling: build, check, latency,
accuracy on the whole set. And what a proposal of the default sampler costs at 60 layers and 300 trials, and in a long study.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from autocompress_plugins.knapsack import Knapsack
from autocompress_plugins.random_search import RandomSearch
from optuna import logging

from autocompress import Budget, LayerPolicy, Policy, SyntheticProblem
from autocompress.measuring.device import TimingSettings
from autocompress.trials.trial import Bench, run_trial
from benchmarks.search_efficiency import bench_of
from benchmarks.workbench import publish, workbench

REPEATS = 3
BATCH = 32


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def eager_pass(bench: Bench) -> None:
    """FP32 on the search set, as PyTorch computes it without export."""
    images = torch.from_numpy(bench.task.sets["search"].inputs)
    with torch.inference_mode():
        for batch in images.split(BATCH):
            bench.task.model(batch)


def trial_figures() -> Mapping[str, Any]:
    """Seconds of trials and of FP32 passes, in turns."""
    with workbench("+experiment=imagenet_efficientnet_lite0", "data.search_size=300", "data.report_size=100") as opened:
        bench = replace(bench_of(opened), timing=TimingSettings())
        bench.baseline()
        found: dict[str, list[float]] = {"eager": [], "int8": [], "int4": []}
        for _ in range(REPEATS):
            found["eager"].append(seconds_of(lambda: eager_pass(bench)))
            for name, bits in (("int8", 8), ("int4", 4)):
                policy = Policy(dict.fromkeys(bench.graph.layers, LayerPolicy(name, bits)))
                found[name].append(seconds_of(lambda policy=policy: _trial(bench, policy)))
    middle = {f"{name}_seconds": median(values) for name, values in found.items()}
    ratios = {f"{name}_to_eager": middle[f"{name}_seconds"] / middle["eager_seconds"] for name in ("int8", "int4")}
    return {"threads": torch.get_num_threads(), **middle, **ratios}


def _trial(bench: Bench, policy: Policy) -> None:
    record, _ = run_trial(bench, policy, Budget(), list, 0, "trial", bench.evaluator.folder / "trial.onnx")
    assert record.state == "complete", record.reason


def proposal_figures(layers: int, options: int, trials: int, moments: tuple[int, ...]) -> Mapping[str, Any]:
    """Median seconds of a proposal around some trials of a study that costs nothing to evaluate."""
    logging.set_verbosity(logging.WARNING)
    problem = SyntheticProblem({f"layer{index}": options for index in range(layers)}, "accuracy", Budget(size_ratio=0.9))
    study = problem.new_study(RandomSearch().create(problem, 0))
    sampler, times = Knapsack().create(problem, 0), dict[int, float]()
    for number in range(trials):
        if number in moments:
            study.sampler = sampler
            times[number] = median(seconds_of(lambda: problem.finish(study, problem.ask(study))) for _ in range(5))
            study.sampler = RandomSearch().create(problem, number)
        problem.finish(study, problem.ask(study))
    return {"layers": layers, "options": options, **{f"seconds_at_{number}": value for number, value in times.items()}}


def main() -> None:
    """Both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {"trial": trial_figures(), "proposal": proposal_figures(60, 12, 1001, (50, 300, 1000))}
    publish("trial_time", rows)
    sys.stdout.write(f"{rows}\n")


if __name__ == "__main__":
    main()
