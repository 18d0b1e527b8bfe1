"""A search that is killed at any moment goes on where it was: nothing is lost, doubled or left open."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from command import SMALL, command, environment, run
from mlflow import MlflowClient
from optuna.trial import TrialState

KILLS = int(os.environ.get("AUTOCOMPRESS_KILLS", "2"))
TRIALS = 4 * KILLS + 4
SEARCH = ("search", *SMALL, "objective=size", f"search.trials={TRIALS}", "hydra.run.dir=out")

STOP = signal.SIGTERM if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else signal.SIGINT
"""A job in the background ignores Ctrl-C from its start, and so would the search."""

pytestmark = pytest.mark.timeout(120 * (KILLS + 1))


def finished(folder: Path) -> int:
    """Trials that are stored as finished."""
    try:
        with sqlite3.connect(folder / "out/study.db") as database:
            rows = database.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()
            return int(rows[0])
    except sqlite3.OperationalError:
        return 0


def kill_in_the_middle(folder: Path, trials: int, sign: signal.Signals) -> None:
    """Start the search, wait until it has finished `trials` trials, then end it at a random moment of the next."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command(SEARCH), cwd=folder, env=environment(), stdout=log, stderr=log)
        while finished(folder) < trials and process.poll() is None:
            time.sleep(0.02)
        time.sleep(random.Random(trials).uniform(0.0, 0.5))
        process.send_signal(sign)
        process.wait(60)


def test_killed_searches_lose_and_double_nothing(tmp_path: Path) -> None:
    seen = []
    for kill in range(KILLS):
        kill_in_the_middle(tmp_path, 4 * kill + 2, signal.SIGKILL)
        seen.append(finished(tmp_path))
    done = run(tmp_path, *SEARCH)
    assert done.returncode == 0, done.stderr

    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/out/study.db")
    trials = study.trials
    counted = [trial for trial in trials if "interrupted" not in trial.user_attrs]
    ended = [trial for trial in counted if trial.state.is_finished()]
    assert seen == sorted(seen)
    assert len(ended) == TRIALS
    assert [trial for trial in trials if trial.state == TrialState.RUNNING] == []

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], max_results=1000)
    logged = Counter(run.data.tags.get("autocompress.trial") for run in runs)
    assert [run.info.run_name for run in runs if run.info.status == "RUNNING"] == []
    assert {str(trial.number) for trial in ended} <= set(logged)
    assert [name for name, count in logged.items() if name is not None and count > 1] == []


def test_an_interrupted_search_ends_with_the_best_so_far(tmp_path: Path) -> None:
    kill_in_the_middle(tmp_path, 2, STOP)
    result = (tmp_path / "out/result.json").read_text()
    assert '"status": "interrupted"' in result
    assert (tmp_path / "out/best/model.onnx").is_file()
