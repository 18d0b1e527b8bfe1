"""Whole searches with a stranger's plugin that misbehaves: each trial once in Optuna and MLflow, and nobody is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from command import SMALL, command, environment
from mlflow import MlflowClient
from optuna.trial import TrialState

from autocompress.studies.study import INTERRUPTED, RECORD

TRIALS = 4
SEARCH = ("search", *SMALL, "objective=size", "quantizer=[int8,strange]", f"search.trials={TRIALS}", "search.trial_timeout=6")
FOLDER = "hydra.run.dir=out"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def installed(folder: Path) -> dict[str, str]:
    """An environment in which the plugin is installed."""
    site = folder / "site"
    info = site / "stranger-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("strange_plugin.py"), site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autocompress]\nstrange = strange_plugin\n")
    found = environment()
    return {**found, "PYTHONPATH": os.pathsep.join([str(site), found["PYTHONPATH"]])}


def searched(folder: Path, environment: dict[str, str], fault: str, *more: str) -> subprocess.CompletedProcess[str]:
    """One start of the search; whatever it leaves running is a fault."""
    call = command((*SEARCH, *more, FOLDER))
    done = subprocess.run(
        call, cwd=folder, env={**environment, "STRANGE": fault}, capture_output=True, text=True, timeout=300, check=False
    )
    left = [process for process in psutil.process_iter() if _works_in(process, folder)]
    assert left == [], "no process is left"
    return done


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


def check(folder: Path) -> list[dict[str, Any]]:
    """Records of all trials, each of which is once in Optuna and in MLflow."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/out/study.db")
    ended = [trial for trial in study.trials if trial.state.is_finished() and INTERRUPTED not in trial.user_attrs]
    assert [trial for trial in study.trials if trial.state == TrialState.RUNNING] == []
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000)
    logged = Counter(run.data.tags["autocompress.trial"] for run in runs if "autocompress.trial" in run.data.tags)
    assert logged == Counter(["baseline", "final", *(str(trial.number) for trial in ended)])
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    return [trial.user_attrs[RECORD] for trial in ended]


@pytest.mark.parametrize(("fault", "reason"), [("hang", "took longer than search.trial_timeout=6"), ("raise", "SystemExit: 3")])
def test_a_plugin_that_hangs_or_raises(tmp_path: Path, fault: str, reason: str) -> None:
    done = searched(tmp_path, installed(tmp_path), fault)
    assert done.returncode == 0, done.stderr
    records = check(tmp_path)
    assert len(records) == TRIALS
    failed = [record for record in records if record["state"] == "failed"]
    assert failed
    assert all(reason in record["reason"] for record in failed)


def test_a_plugin_that_ends_the_process(tmp_path: Path) -> None:
    """Its option of the tables, and a trial with it, each take two processes along; then they are given up."""
    stranger, ends = installed(tmp_path), list[int]()
    while len(ends) < 5 and 0 not in ends:
        ends.append(searched(tmp_path, stranger, "exit", "search.trials=2", "space.include=['6']").returncode)
    assert ends in ([7, 7, 0], [7, 7, 7, 7, 0])
    records = check(tmp_path)
    assert len(records) == 2
    failed = [record for record in records if record["state"] == "failed"]
    assert len(failed) == (len(ends) - 3) // 2
    assert all("the process that ran it died" in record["reason"] for record in failed)


@pytest.mark.parametrize("fault", ["print", "fork"])
def test_a_plugin_that_prints_or_forks(tmp_path: Path, fault: str) -> None:
    done = searched(tmp_path, installed(tmp_path), fault, "tracking=[mlflow,loud]")
    assert done.returncode == 0, done.stderr
    assert "a stranger" not in done.stdout
    assert ("a stranger was here" in done.stderr) == (fault == "print")
    assert "warning: tracker:loud failed in autocompress_trial_finished: SystemExit: 5" in done.stderr
    assert {record["state"] for record in check(tmp_path)} <= {"complete", "pruned"}
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert sum(result["trials"].values()) == TRIALS
