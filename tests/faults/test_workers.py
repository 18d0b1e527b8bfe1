"""Several processes at one study in PostgreSQL: each trial ends once, or is retried once when its process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from command import SMALL, command, environment
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from autocompress import Budget, LayerPolicy, Measurement, TrialRecord
from autocompress.choices.space import SearchSpace
from autocompress.errors import ConfigError
from autocompress.studies.heartbeat import HEARTBEAT
from autocompress.studies.opening import join_study, open_study
from autocompress.studies.storage import Storage, StudySettings, opened_storage
from autocompress.studies.study import INTERRUPTED, OPEN, STATE, SearchStudy
from benchmarks.postgres import PASSWORD, missing, postgres_server

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SECONDS = 0.05
"""Between heartbeats."""

SPACE = SearchSpace(
    layers={name: [LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4)] for name in ("stem", "head")},
    channels={},
    ops={},
)
ALL = [(stem, head) for stem in range(3) for head in range(3)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with postgres_server() as server:
        yield server.address


@pytest.fixture
def identity(request: pytest.FixtureRequest) -> list[str]:
    """Of the test, so that all tests share a database."""
    return [request.node.name, "model", "data", "this machine", "components"]


_storages = ExitStack()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with _storages:
        yield


def storage(address: str) -> Storage:
    return _storages.enter_context(opened_storage(StudySettings(address, SECONDS), Path()))


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed)


def opened(address: str, identity: list[str]) -> SearchStudy:
    study = open_study(storage(address), identity, SPACE, "accuracy", Budget(size_ratio=0.5), sampler)
    study.open()
    return study


def joined(address: str, identity: list[str], wait_seconds: float = 0.1) -> SearchStudy:
    return join_study(storage(address), identity, SPACE, "accuracy", Budget(size_ratio=0.5), sampler, wait_seconds)


def record(number: int, policy: Any, size: float = 0.25) -> TrialRecord:
    figures = Measurement(int(1000 * size), size, 0.5, 0.5, 0.9, 0.0, 100)
    violations = Budget(size_ratio=0.5).violations(figures)
    return TrialRecord(number, "trial", "complete", "done", "", policy, figures, violations)


def finish(study: SearchStudy) -> TrialRecord:
    trial = study.ask()
    made = record(trial.number, SPACE.policy(trial.params))
    assert study.tell(trial, made)
    return made


def die(study: SearchStudy) -> dict[str, int]:
    """Leave a trial running without signs of life; returns its parameters."""
    trial = study.ask()
    assert study._heartbeat is not None
    study._heartbeat.stop()
    return dict(trial.params)


def see_silence(study: SearchStudy, between: Callable[[], None] = lambda: None) -> int:
    """Look twice, as if the grace were over between."""
    assert study._watch is not None
    study._watch._grace = 60.0
    assert study.retry_silent() == 0
    between()
    study._watch._grace = 0.0
    return study.retry_silent()


def stored(study: SearchStudy) -> list[FrozenTrial]:
    return study._study.get_trials()


def test_each_learns_what_the_others_finished(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    worker = joined(address, identity)
    first, second = finish(search), finish(worker)
    assert [each.number for each in (first, second)] == [0, 1]
    assert search.news() == worker.news() == [first, second] == search.records()
    assert search.news() == []
    third = finish(worker)
    assert search.news() == [third]
    assert search.running == 0
    running = worker.ask()
    assert (search.running, worker.running) == (1, 0)
    worker.tell(running, record(running.number, SPACE.policy(running.params)))
    assert search.running == 0


def test_a_queued_policy_is_taken_once(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    workers = [joined(address, identity) for _ in range(3)]
    seeds = [{"stem": stem, "head": head} for stem, head in ALL]
    for seed in seeds:
        search.enqueue_seed(seed)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda worker: [finish(worker) for _ in range(3)], workers))
    found = [SPACE.indices(each.policy) for part in made for each in part]
    assert sorted(found, key=str) == sorted(seeds, key=str)
    assert sorted(trial.number for trial in stored(search)) == list(range(9))


def test_a_dead_process_s_trial_is_retried_once_by_another(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    params = die(joined(address, identity))
    worker, other = joined(address, identity), joined(address, identity)
    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(see_silence, [worker, other])) == 1
    assert [trial.state for trial in stored(search)] == [TrialState.FAIL, TrialState.WAITING]
    assert search.news() == [], "it does not count"
    retried = worker.ask()
    assert (retried.number, retried.params) == (1, params)
    assert worker.tell(retried, made := record(1, SPACE.policy(params)))
    assert search.news() == [made]


def test_a_retried_trial_keeps_its_own_constraints(address: str, identity: list[str]) -> None:
    """Optuna's constraints are written once, and its own way of retrying would keep those of the dead trial."""
    search = opened(address, identity)
    dying = joined(address, identity)
    trial = dying.ask()
    trial.set_constraint("size_ratio", 7.0)
    assert dying._heartbeat is not None
    dying._heartbeat.stop()
    assert see_silence(search) == 1
    finish(search)
    assert [trial.constraints for trial in stored(search)] == [{"size_ratio": 7.0}, {"size_ratio": pytest.approx(-0.5)}]


def test_a_policy_that_kills_twice_failed(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    params = die(joined(address, identity))
    assert see_silence(search) == 1
    assert die(joined(address, identity)) == params
    assert see_silence(search) == 1
    (failed,) = search.news()
    assert (failed.number, failed.state, SPACE.indices(failed.policy)) == (1, "failed", params)
    assert failed.reason == "the process that ran it died, as that of trial 0 had: it is not tried again"
    assert [trial.state for trial in stored(search)] == [TrialState.FAIL, TrialState.FAIL]


def test_who_was_taken_for_dead_stores_nothing(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    slow = joined(address, identity)
    trial = slow.ask()
    assert slow._heartbeat is not None
    slow._heartbeat.stop()
    assert see_silence(search) == 1
    assert not slow.tell(trial, record(trial.number, SPACE.policy(trial.params)))
    made = finish(slow)
    assert search.records() == [made]
    assert made.policy == SPACE.policy(trial.params), "by chance it is the one that runs it again"


def test_a_long_trial_is_not_taken_for_dead(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    worker = joined(address, identity)
    trial = worker.ask()

    def wait() -> None:
        before = stored(search)[0].user_attrs.get(HEARTBEAT, 0)
        while stored(search)[0].user_attrs.get(HEARTBEAT, 0) < before + 2:
            time.sleep(SECONDS)

    assert [see_silence(search, wait) for _ in range(3)] == [0, 0, 0]
    assert worker.tell(trial, record(trial.number, SPACE.policy(trial.params)))


def test_a_stopped_worker_gives_its_trial_back(address: str, identity: list[str]) -> None:
    search = opened(address, identity)
    worker = joined(address, identity)
    params = dict(worker.ask().params)
    worker.give_back()
    assert search.running == 0
    assert search.ask().params == params
    assert search.retry_silent() == 0


def test_one_search_has_a_study(address: str, identity: list[str]) -> None:
    first, second = opened(address, identity), opened(address, identity)
    with first.held():
        with pytest.raises(ConfigError, match="another search has it; help it with `autocompress worker`") as raised:
            second.held().__enter__()
        assert PASSWORD not in str(raised.value)
        assert ":***@" in str(raised.value)
    with second.held():
        pass


def test_a_worker_with_other_settings_is_told_what_differs(address: str, identity: list[str]) -> None:
    name = opened(address, identity).name
    others = [*identity[:3], "that machine", *identity[4:]]
    with pytest.raises(ConfigError, match=r"no search has opened it in .*:\*\*\*@") as raised:
        joined(address, others)
    assert f"{name} there differs in device (this machine there, that machine here); start" in str(raised.value)


def test_a_worker_waits_for_the_search(address: str, identity: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(joined, address, identity, 20)
        search = opened(address, identity)
        worker = waiting.result(20)
    assert (worker.name, worker.ended) == (search.name, None)
    search.end("enough")
    assert worker.ended == "enough"
    with pytest.raises(ConfigError, match="no search has opened it"):
        joined(address, identity)


def test_sisters_are_imported_once_while_others_run_trials(address: str, identity: list[str]) -> None:
    """Optuna's own way of numbering under its own lock, so that no number is given twice."""

    def small(_: int = 0) -> SearchStudy:
        return open_study(storage(address), identity, SPACE, "size", Budget(), sampler)

    worker, sister = small(), opened(address, identity)
    for stem, head in ALL:
        sister.enqueue_seed({"stem": stem, "head": head})
    sister_s = [finish(sister).policy for _ in ALL]
    with ThreadPoolExecutor(4) as pool:
        own = pool.submit(lambda: [finish(worker) for _ in range(6)])
        searches = list(pool.map(small, range(3)))
        measured = own.result()
    trials, records = stored(worker), searches[0].records()
    assert sorted(trial.number for trial in trials) == list(range(len(trials)))
    imported = [record for record in records if record.kind == "imported"]
    assert [record for record in records if record.kind != "imported"] == measured
    assert len({record.policy.digest for record in imported}) == len(imported) >= len(ALL) - len(measured)
    assert {record.policy.digest for record in records} == {policy.digest for policy in sister_s}
    assert {trial.values[0] for trial in trials} == {250.0}
    assert all(trial.params == SPACE.indices(searches[0].records()[trial.number].policy) for trial in trials)


def test_tables_are_created_once_when_all_start_together(address: str) -> None:
    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create database fresh"))
    engine.dispose()
    fresh = address.replace("/postgres", "/fresh")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(storage, [fresh] * 4))
    assert [each.rdb.get_all_studies() for each in found] == [[]] * 4


TRIALS = 6


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_search_and_its_workers(address: str, tmp_path: Path, killed: bool) -> None:
    """As a user starts them: one conclusion, each trial once in Optuna and in MLflow, no password anywhere."""
    names = ["search", "worker", *(["doomed"] if killed else [])]
    model, logs = f"killed-{killed}", {name: tmp_path / f"{name}.log" for name in names}
    processes = {name: started("search" if name == "search" else "worker", address, model, logs[name]) for name in names}
    if killed:
        wait_for(logs["doomed"], "joined study", processes["doomed"])
        time.sleep(0.5)
        processes["doomed"].send_signal(signal.SIGKILL)
    ends = {name: process.wait(150) for name, process in processes.items()}
    expected = {name: -signal.SIGKILL if name == "doomed" else 0 for name in names}
    assert ends == expected, {name: log.read_text() for name, log in logs.items()}
    assert "joined study" in logs["worker"].read_text()

    rdb = storage(address).rdb
    name = next(name for name in optuna.get_all_study_names(rdb) if name.startswith(model))
    study = optuna.load_study(study_name=name, storage=rdb)
    counted = [trial for trial in study.trials if INTERRUPTED not in trial.user_attrs and trial.state.is_finished()]
    assert [trial for trial in study.trials if trial.state == TrialState.RUNNING] == []
    assert TRIALS <= len(counted) <= TRIALS + 2
    assert study.user_attrs[STATE] != OPEN
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert sum(result["trials"].values()) == len(counted)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000)
    logged = [run.data.tags["autocompress.trial"] for run in runs if "autocompress.trial" in run.data.tags]
    assert sorted(logged) == sorted(["baseline", "final", *(str(trial.number) for trial in counted)])
    assert {run.info.status for run in runs} == {"FINISHED"}

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if b"s3cret" in path.read_bytes()] == []
    assert [path for path in written if b":***@127.0.0.1" in path.read_bytes()] != []


def started(verb: str, address: str, model: str, log: Path) -> subprocess.Popen[bytes]:
    study = (f"study.storage={address}", "study.heartbeat_seconds=1", "study.wait_seconds=100")
    slow = ("metric=function", "metric.function.path=benchmarks.slow_metric:right_after_a_while")
    few = ("objective=size", "sampler=random", "pruner=[sparse]", "space.ops=false", "trial.subsets=[]")
    arguments = [verb, *SMALL, *study, *slow, *few, f"model.name={model}", f"search.trials={TRIALS}", "hydra.run.dir=out"]
    usual = environment()
    paths = f"{Path(__file__).parents[2]}{os.pathsep}{usual['PYTHONPATH']}"
    own = {**usual, "PYTHONPATH": paths, "AUTOCOMPRESS_BENCHMARK_SECONDS": "0.3"}
    with log.open("w") as file:
        return subprocess.Popen(command(arguments), cwd=log.parent, env=own, stdout=file, stderr=file)


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 100
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
