"""A search that is killed at any moment goes on where it was: `tests.faults.kills` in its short form."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.kills import MOMENTS, SIGNS, accounts, broken_files, finished, killed
from tests.faults.nursery import SMALL, Nursery

KILLS = int(os.environ.get("AUTOCOMPRESS_KILLS", "2"))
SEED = int(os.environ.get("AUTOCOMPRESS_KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)

pytestmark = pytest.mark.timeout(300 * (KILLS + 1))


def test_killed_searches_lose_and_double_nothing(home: Nursery, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    kills = [
        ("SIGKILL", dice.choice(["trials", "logging"])),
        *[(dice.choice(SIGNS), dice.choice([*MOMENTS])) for _ in range(KILLS - 1)],
    ]
    print(f"AUTOCOMPRESS_KILLS_SEED={SEED}: {kills}")  # noqa: T201  (shown when it fails)
    tally = killed(home, tmp_path / "search", SEED, kills)
    assert tally.faults == [], f"AUTOCOMPRESS_KILLS_SEED={SEED}: {kills}"
    assert tally.trials >= 2
    first, second = list(finished(tmp_path / "search"))[:2]
    spoil(tmp_path / "search", first, second)
    assert accounts(tmp_path / "search") == ([f"{first} is not in MLflow"], [f"{second} is 2 times in MLflow"])
    assert [flaw.split(":")[0] for flaw in broken_files(tmp_path / "search/out")] == ["best/model.onnx", "result.json"]


def spoil(folder: Path, lost: int, doubled: int) -> None:
    """What must be seen: a trial that MLflow lacks, one that it has twice, and files that are cut."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    (experiment,) = [each.experiment_id for each in client.search_experiments() if each.experiment_id != "0"]
    for number in (lost, doubled):
        (run,) = client.search_runs([experiment], f"tags.`autocompress.trial` = '{number}'")
        if number == lost:
            client.delete_run(run.info.run_id)
        else:
            client.set_terminated(client.create_run(experiment, tags=run.data.tags).info.run_id)
    for name in ("best/model.onnx", "result.json"):
        os.truncate(folder / "out" / name, 1000)


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_search_ends_with_the_best_so_far(home: Nursery, tmp_path: Path, sign: signal.Signals) -> None:
    search = home.start(tmp_path, "search", *SMALL, "objective=size", "search.trials=40", "search.finalists=1")
    while "[2/40]" not in search.log and home.poll(search, 0.02) is None:
        pass
    search.send(sign)
    assert home.wait(search) == 130
    assert search.log.splitlines()[-1] == "autocompress: interrupted; the same command resumes"
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "out/best/README.md").is_file()
    assert search.orphans() == []
    assert accounts(tmp_path) == ([], [])


@pytest.mark.parametrize("library", ["multiarray_umath", "libtorch_cpu"])
def test_an_interruption_while_modules_are_imported(tmp_path: Path, library: str) -> None:
    """In a fresh interpreter, once a library is there that others are still importing."""
    command = [sys.executable, "-m", "autocompress", "search", *SMALL]
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while library not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
            pass
        process.terminate()
        said = process.communicate(timeout=60)[0]
    assert (said, process.returncode) == ("autocompress: interrupted; the same command resumes\n", 130)
    assert list(tmp_path.iterdir()) == []
