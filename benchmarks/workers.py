"""Many processes at one study in PostgreSQL: `python -m benchmarks.workers throughput|kills [--processes N]`.

Searches as on the command line, on a small net whose evaluation sleeps for a second. `throughput`: trials a second of one
process and of N. `kills`: workers die by SIGKILL at random moments, and what Optuna and MLflow hold afterwards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autocompress import cli, verbs
from autocompress.studies.study import INTERRUPTED, RETRY_OF
from benchmarks.postgres import postgres_server
from benchmarks.workbench import publish

assert verbs  # imported once, so that processes that are forked from this one start quickly

OVERRIDES = (
    "model.factory=benchmarks.workers:small_net",
    "model.name=small",
    "model.train_epochs=0",
    "metric=function",
    "metric.function.path=benchmarks.slow_metric:right_after_a_while",
    "objective=size",
    "trial.subsets=[]",
    "timing.seconds=0.02",
    "sampler=random",
    "space.ops=false",
    "data.search_size=100",
    "trial.check_images=8",
    "hydra.run.dir=out",
)
PAUSE_SECONDS = 3.0
"""Mean time from a worker's joining to its end."""


def small_net() -> Any:
    """Seeded, not trained."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@dataclass
class Crew:
    """The processes at one study."""

    folder: Path
    overrides: Sequence[str]
    numbers: Iterator[int]

    def start(self, verb: str) -> tuple[BaseProcess, Path]:
        """A process with the command line, and its log."""
        log = self.folder / f"{verb}{next(self.numbers)}.log"
        log.touch()
        process = multiprocessing.get_context("fork").Process(target=self._run, args=(verb, log))
        process.start()
        return process, log

    def _run(self, verb: str, log: Path) -> None:
        os.chdir(self.folder)
        tempfile.tempdir = str(self.folder)  # what killed workers leave goes, too
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["autocompress"]
        cli.main([verb, *self.overrides])


@contextmanager
def crew(trials: int, *overrides: str) -> Iterator[tuple[Crew, str]]:
    """An empty study in a server of its own."""
    with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
        more = (*OVERRIDES, f"search.trials={trials}", f"study.storage={server.address}", *overrides)
        try:
            yield Crew(Path(folder), more, count()), server.address
        finally:
            for process in multiprocessing.active_children():
                process.kill()
                process.join()


def stored(address: str) -> list[FrozenTrial]:
    """What Optuna holds; nothing before the search has opened the study."""
    names = optuna.get_all_study_names(address)
    return optuna.load_study(study_name=names[0], storage=address).get_trials() if names else []


def throughput(processes: int) -> dict[str, Any]:
    """Trials a second while all processes are at one: a search and its workers, MLflow included."""
    with crew(12 * processes) as (started, address):
        running = [started.start("search" if number == 0 else "worker") for number in range(processes)]
        for process, log in running:
            process.join()
            assert process.exitcode == 0, log.read_text()
        trials = [trial for trial in stored(address) if trial.state == TrialState.COMPLETE]
    begun = np.array([trial.datetime_start.timestamp() for trial in trials if trial.datetime_start])
    ended = np.array([trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete])
    all_at_one = [time for time in begun if ((begun <= time) & (time < ended)).sum() == processes]
    first, last = min(all_at_one), max(all_at_one)
    done = int(((ended > first) & (ended <= last)).sum())
    lasted = float(np.median(ended - begun))
    return {
        "processes": processes,
        "trials": done,
        "seconds": float(last - first),
        "per_second": float(done / (last - first)),
        "trial_seconds": lasted,
    }


def kills(processes: int, deaths: int, trials: int) -> dict[str, Any]:
    """Kill workers at random moments after they joined, replace each, and compare what is stored at the end."""
    draw = random.Random(0)
    with crew(trials, "study.heartbeat_seconds=2") as (started, address):
        search, search_log = started.start("search")
        workers = [started.start("worker") for _ in range(processes - 1)]
        due: dict[int, float] = {}
        killed = 0
        while search.is_alive():
            for index, (process, log) in enumerate(workers):
                number = process.pid or 0
                if number not in due and "joined study" in log.read_text():
                    due[number] = time.monotonic() + draw.expovariate(1 / PAUSE_SECONDS)
                if killed < deaths and process.is_alive() and time.monotonic() > due.get(number, float("inf")):
                    os.kill(number, signal.SIGKILL)
                    killed += 1
                    workers[index] = started.start("worker")
            time.sleep(0.02)
        for process, _ in workers:
            process.join()
        assert search.exitcode == 0, search_log.read_text()
        exits = Counter(process.exitcode for process, _ in workers)
        return {"processes": processes, "killed": killed, "exits": dict(exits), **agreement(address, started.folder)}


def agreement(address: str, folder: Path) -> dict[str, Any]:
    """What became of each trial, and whether MLflow has the same."""
    from mlflow import MlflowClient  # starts threads, and processes are forked before

    trials = stored(address)
    left = [trial for trial in trials if INTERRUPTED in trial.user_attrs]
    counted = [trial for trial in trials if trial.state.is_finished() and INTERRUPTED not in trial.user_attrs]
    retries = Counter(trial.user_attrs.get(RETRY_OF) for trial in trials if RETRY_OF in trial.user_attrs)
    begun = [trial for trial in left if trial.params and RETRY_OF not in trial.user_attrs]
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=5000)
    children = {run.data.tags["autocompress.trial"]: run for run in runs if "autocompress.trial" in run.data.tags}
    ended = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
    same = {str(trial.number): ended[trial.state.name] for trial in counted}
    logged = {key: run.info.status for key, run in children.items() if key not in ("baseline", "final")}
    return {
        "trials": len(trials),
        "finished": len(counted),
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "interrupted": len(left),
        "killed_while_at_a_trial": len(begun),
        "each_retried_once": {trial.number for trial in begun} == set(retries) and set(retries.values()) <= {1},
        "retries": sum(retries.values()),
        "failed_after_two_deaths": sum(trial.state == TrialState.FAIL for trial in counted),
        "mlflow_children": len(logged),
        "mlflow_runs_of_studies": len(runs) - len(children),
        "mlflow_doubled": sum("autocompress.trial" in run.data.tags for run in runs) - len(children),
        "mlflow_running": sum(run.info.status == "RUNNING" for run in runs),
        "mlflow_agrees": logged == same,
    }


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("throughput", "kills"))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.what == "kills":
        rows: Any = kills(arguments.processes, arguments.kills, arguments.trials)
    else:
        one, many = throughput(1), throughput(arguments.processes)
        rows = {"one": one, "many": many, "ratio": many["per_second"] / one["per_second"]}
    publish(f"workers_{arguments.what}", rows)
    print(rows)


if __name__ == "__main__":
    main()
