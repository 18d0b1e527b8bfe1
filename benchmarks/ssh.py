"""The target `ssh` against the same runtime on this machine, over loopback: `python -m benchmarks.ssh ratio|trial|drops`.

`ratio`: latency ratios of one INT8 file, measured here and there in turn. `trial`: seconds that the same trials take here and
there. `drops`: a search of 40 trials during which all connections are cut 20 times.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import optuna

from autocompress import Budget, LayerPolicy, Policy, load_registry, search
from autocompress.config import compose_settings
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.trials.trial import Bench, TrialSettings, run_trial
from benchmarks.loopback import Loopback, open_loopback
from benchmarks.workbench import Workbench, publish, workbench

MODEL = "+experiment=cifar10_resnet20"
MEASURING = ("check", "latency", "accuracy")
REPEATS, TRIALS, DROPPED_TRIALS, DROPS = 15, 8, 40, 20
INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)


@contextmanager
def devices(bench: Workbench) -> Iterator[dict[str, Device]]:
    """This machine, and the same one behind a server; outputs are computed with as many threads."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, open_loopback(Path(folder)) as server:
        behind = compose_settings(server.overrides(), load_registry()).components.target
        with open_device(bench.components.target, cores) as here, open_device(behind, cores) as there:
            yield {"here": here, "ssh": there}


def ratio() -> dict[str, Any]:
    """Medians of interleaved measurements of one file, and how far apart they are."""
    found: dict[str, list[float]] = {"here": [], "ssh": []}
    with workbench(MODEL) as bench, devices(bench) as machines:
        policy = Policy(dict.fromkeys(bench.graph.layers, INT8))
        path, inputs = bench.build(policy, bench.compress(policy)).artifact.path, bench.evaluator.inputs("example")
        for _ in range(REPEATS):
            for name in random.sample(list(machines), len(machines)):
                timing = TimingSettings(seconds=2.0, precision=0.0)
                found[name].append(machines[name].latency(bench.graph.path, path, inputs, timing).ratio)
    here, there = median(found["here"]), median(found["ssh"])
    return {"ratios": found, "median_here": here, "median_ssh": there, "difference": there / here - 1}


def trial() -> dict[str, Any]:
    """Seconds of checking, timing and scoring the same files; timing takes a fixed time."""
    found: dict[str, list[float]] = {"here": [], "ssh": []}
    with workbench(MODEL) as bench, devices(bench) as machines:
        benches = {name: _bench(bench, device) for name, device in machines.items()}
        for number, policy in enumerate(_policies(bench)):
            for name in random.sample(list(benches), len(benches)):
                path = bench.folder / f"{name}{number}.onnx"
                record, _ = run_trial(benches[name], policy, Budget(), lambda: (), number, "trial", path)
                assert record.state == "complete", record.reason
                found[name].append(sum(record.seconds[gate] for gate in MEASURING))
                path.unlink()
    more = [there - here for here, there in zip(found["here"], found["ssh"], strict=True)]
    later = {"overhead_seconds_median": median(more[1:]), "overhead_seconds_most": max(more[1:])}
    return {"seconds": found, "first_overhead_seconds": more[0], **later}


def _bench(bench: Workbench, device: Device) -> Bench:
    evaluator = replace(bench.evaluator, device=device)
    timing = TimingSettings(seconds=0.5, precision=0.0)
    parts = (bench.task, bench.graph, bench.groups, bench.components, bench.calibration, bench.database)
    return Bench(*parts, device, evaluator, timing, TrialSettings())


def _policies(bench: Workbench) -> Iterator[Policy]:
    chance = random.Random(0)
    for _ in range(TRIALS):
        yield Policy({name: chance.choice([INT8, INT4]) for name in bench.graph.layers})


def drops() -> dict[str, Any]:
    """What is in the study after a search whose connections were cut time and again."""
    with tempfile.TemporaryDirectory() as name, open_loopback(Path(name)) as server, workbench("+experiment=digits") as bench:
        folder = Path(name) / "study"
        free = ["sampler=random", "search.start=none", "tracking=[]", "timing.seconds=0.3", "timing.precision=0"]
        with _dropping(server) as cut:
            start = time.monotonic()
            result = search(bench.task, trials=DROPPED_TRIALS, output_dir=folder, overrides=[*server.overrides(), *free])
            seconds = time.monotonic() - start
        stored = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}").get_trials()
    measured = [record for record in result.records if record.is_measured]
    return {
        "drops": len(cut),
        "seconds": seconds,
        "trials": len(measured),
        "policies": len({record.policy.digest for record in measured}),
        "states": dict(Counter(record.state for record in measured)),
        "numbers_are_complete": [record.number for record in result.records] == list(range(len(stored))),
        "optuna": dict(Counter(trial.state.name for trial in stored)),
    }


@contextmanager
def _dropping(server: Loopback) -> Iterator[list[int]]:
    """Cuts all connections at random moments; yields how many there were each time."""
    over, chance, cut = threading.Event(), random.Random(0), list[int]()

    def work() -> None:
        while len(cut) < DROPS and not over.wait(chance.uniform(0.5, 3.0)):
            found = server.drop()
            cut.extend([found] if found else [])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield cut
    finally:
        over.set()
        thread.join()


def main() -> None:
    """One part, published under its name."""
    part = sys.argv[1]
    rows = {"ratio": ratio, "trial": trial, "drops": drops}[part]()
    publish(f"ssh_{part}", rows)
    print(rows)


if __name__ == "__main__":
    main()
