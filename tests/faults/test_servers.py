"""Servers that are killed and started again in the midst of a search."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from optuna.trial import TrialState

from autocompress.studies.storage import StudySettings, opened_storage
from benchmarks.postgres import missing, postgres_server
from tests.faults.kills import TRACEBACK
from tests.faults.nursery import SMALL, Nursery, Started

SEARCH = ("search", *SMALL, "objective=size", "search.finalists=1", "search.trials=6")

pytestmark = pytest.mark.slow


def wait_for(home: Nursery, search: Started, text: str) -> None:
    while text not in search.log:
        assert home.poll(search, 0.02) is None, search.log


def reached(home: Nursery, search: Started, text: str) -> bool:
    """Whether the search says so before it ends."""
    while text not in search.log and home.poll(search, 0.02) is None:
        pass
    return text in search.log


def resumed(home: Nursery, search: Started, arguments: Sequence[str]) -> Started:
    """The next start of one whose database died in the midst of a request."""
    assert search.status == 1 and TRACEBACK not in search.log, search.log
    assert search.log.splitlines()[-1].endswith("the same command resumes when it is back")
    return home.start(search.folder, *arguments)


def logged(client: MlflowClient) -> Counter[str]:
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return Counter(run.data.tags.get("autocompress.trial", "study") for run in runs)


@pytest.mark.parametrize("back", ["during", "after"])
def test_an_mlflow_server_that_is_killed_gets_what_it_missed(home: Nursery, tmp_path: Path, back: str) -> None:
    """In the search where it is back before the end, else by `autocompress sync`."""
    server = mlflow_server(tmp_path)
    server.start()
    try:
        search = home.start(tmp_path, *SEARCH, f"tracking.mlflow.uri={server.uri}")
        wait_for(home, search, "[2/6]")
        server.kill()
        wait_for(home, search, "[4/6]")
        if back == "during":
            search.send(signal.SIGSTOP)  # a server takes its time to start
            server.start()
            search.send(signal.SIGCONT)
        assert home.wait(search) == 0, search.log
        assert f"tracking.mlflow.uri={server.uri} does not answer" in search.log
        if back == "after":
            server.start()
            assert home.run(tmp_path, "sync", "out").status == 0
        expected = {"study", "baseline", "final", *map(str, range(6))}
        assert logged(MlflowClient(server.uri)) == Counter(expected)
        assert TRACEBACK not in search.log
    finally:
        server.kill()


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_postgresql_server_that_is_killed_is_waited_for(home: Nursery, tmp_path: Path) -> None:
    """Or, where it dies in the midst of a request, the search ends with a line, and the next one resumes."""
    with postgres_server() as server:
        arguments = (*SEARCH, f"study.storage={server.address}", "study.heartbeat_seconds=1")
        search = home.start(tmp_path, *arguments)
        for count in (1, 3):
            if not reached(home, search, f"[{count}/6]"):
                search = resumed(home, search, arguments)
                assert reached(home, search, f"[{count}/6]")
            server.stop(signal.SIGQUIT)
            time.sleep(2)
            server.start()
        if home.wait(search):
            assert home.wait(resumed(home, search, arguments)) == 0
        with opened_storage(StudySettings(server.address), tmp_path) as storage:
            trials = optuna.load_study(study_name=None, storage=storage.rdb).trials
        counted = [trial for trial in trials if trial.state.is_finished() and "interrupted" not in trial.user_attrs]
        assert [trial for trial in trials if trial.state == TrialState.RUNNING] == []
        assert len(counted) == sum(json.loads((tmp_path / "out/result.json").read_text())["trials"].values()) == 6
        names = {"study", "baseline", "final", *(str(trial.number) for trial in counted)}
        assert logged(MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")) == Counter(names)
