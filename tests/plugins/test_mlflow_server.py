"""Against a real `mlflow server`: one that is away delays nothing, and gets everything once when it is back."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import requests
from autocompress_plugins.mlflow_tracker import MlflowTracker
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow_server import Server, free_port, mlflow_server

from autocompress import StudyContext, TrialRecord, load_registry
from autocompress.commands.sync import tell_again
from autocompress.errors import StorageError
from autocompress.studies.study_file import SavedStudy
from autocompress.testing import make_records, make_result, make_study


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet."""
    found = mlflow_server(tmp_path)
    yield found
    found.kill()


@pytest.fixture
def study(tmp_path: Path) -> StudyContext:
    np.save(tmp_path / "example.npy", np.zeros((1, 4, 6, 6), np.float32))
    return replace(make_study(tmp_path), example=tmp_path / "example.npy")


def numbered(study: StudyContext, count: int) -> list[TrialRecord]:
    return [replace(make_records(study)[number % 3], number=number) for number in range(count)]


def seconds_of(call: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def keys(client: MlflowClient) -> list[str]:
    return sorted(run.data.tags.get("autocompress.trial", "study") for run in all_runs(client))


def all_runs(client: MlflowClient) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, run_view_type=ViewType.ACTIVE_ONLY))


def test_no_server_delays_nothing(study: StudyContext) -> None:
    records = numbered(study, 50)
    tracker = MlflowTracker(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError, match=r"does not answer; the study keeps what it misses, .*: autocompress sync .*study$"):
        tracker.autocompress_search_started(study, [])
    assert sum(seconds_of(tracker.autocompress_trial_finished, record) for record in records) < 2
    with pytest.raises(StorageError, match="autocompress sync"):
        tracker.autocompress_search_finished(make_result(study, records))


def test_a_server_that_hangs_is_asked_seldom(study: StudyContext) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        tracker = MlflowTracker(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(StorageError, match="does not answer"):
            tracker.autocompress_search_started(study, [])
        assert time.perf_counter() - start < 6
        assert sum(seconds_of(tracker.autocompress_trial_finished, record) for record in numbered(study, 50)) < 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_dies_and_comes_back_has_everything_once(server: Server, study: StudyContext) -> None:
    records = numbered(study, 6)
    server.start()
    tracker = MlflowTracker(uri=server.uri)
    tracker.autocompress_search_started(study, [])
    tracker.autocompress_trial_finished(records[0])
    server.kill()
    start = time.perf_counter()
    with pytest.raises(StorageError, match="does not answer"):
        tracker.autocompress_trial_finished(records[1])
    assert time.perf_counter() - start < 10
    assert seconds_of(tracker.autocompress_trial_finished, records[2]) < 3
    server.start()
    tracker._outage._next = 0.0  # the time until it is asked again is over
    tracker.autocompress_trial_finished(records[3])
    client = MlflowClient(server.uri)
    assert keys(client) == ["0", "1", "2", "3", "baseline", "study"]
    server.kill()
    with pytest.raises(StorageError):
        tracker.autocompress_trial_finished(records[4])
    tracker.autocompress_trial_finished(records[5])
    result = make_result(study, records)
    with pytest.raises(StorageError):
        tracker.autocompress_search_finished(result)
    server.start()
    before: set[str] = set()
    for _ in range(2):
        said, problems = tell_again(SavedStudy(study, records, result), [MlflowTracker(uri=server.uri)], load_registry())
        assert problems == [] and said[0].startswith(f"MLflow: {server.uri}/#/experiments/")
        found = {run.info.run_id for run in all_runs(client)}
        assert before in (set(), found)
        before = found
    assert keys(client) == ["0", "1", "2", "3", "4", "5", "baseline", "final", "study"]
    assert len(client.search_model_versions()) == 1
    check_champion(server, result.best.artifact.path)


def check_champion(server: Server, path: Path) -> None:
    """`mlflow models serve` answers as the file does."""
    arguments = ["models", "serve", "--model-uri", "models:/net-runtime@champion", "--env-manager", "local"]
    programs = distribution("uvicorn").locate_file("../../../bin")  # MLflow starts it by its name
    environment = {"MLFLOW_TRACKING_URI": server.uri, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    serving = Server(server.folder, arguments, "ping", environment)
    serving.start()
    try:
        images = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
        answer = requests.post(f"{serving.uri}/invocations", json={"inputs": {name: images.tolist()}}, timeout=60)
        (expected,) = session.run(None, {name: images})
        assert np.array_equal(np.array(answer.json()["predictions"][output], np.float32), expected)
    finally:
        serving.kill()
