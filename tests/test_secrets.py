"""No password or token of a configuration is found in anything that a command writes or prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import SMALL, command, environment

SECRET = "s3cr/et-w0rd"
"""With a character that addresses may not have, and that databases take all the same."""

TOKEN = "t0ken-of-somebody"

STORAGE = f"study.storage=postgresql://me:{SECRET}@127.0.0.1:1/studies"
TRACKING = f"tracking.mlflow.uri=http://me:{SECRET}@127.0.0.1:1"

NET = """
import os, warnings
from small_net import small_net

def net(token):
    warnings.warn(f"saw {os.environ['ADDRESS']} and {token}")
    return small_net()

def broken(token):
    raise RuntimeError(f"saw {os.environ['ADDRESS']} and {token}")
"""


def call(folder: Path, *arguments: str, sweep: bool = False) -> subprocess.CompletedProcess[str]:
    """A command with a factory that is given a token, and tells it."""
    (folder / "mine.py").write_text(NET)
    found = {**environment(), "MY_TOKEN": TOKEN, "ADDRESS": f"http://me:{SECRET}@host"}
    net = ("model.factory=mine:net", "+model.kwargs.token=${oc.env:MY_TOKEN}")
    words = ["search", *(["-m"] if sweep else []), *SMALL, *net, *arguments]
    return subprocess.run(command(words), cwd=folder, env=found, capture_output=True, text=True, timeout=240, check=False)


def leaks(folder: Path, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Files that hold a secret, or whose names do, and what was printed with one."""
    parts = [SECRET.rpartition("/")[2], TOKEN]
    files = [path for path in folder.rglob("*") if path.is_file()]
    held = [f"{path}: {part}" for path in files for part in parts if part.encode() in path.read_bytes() or part in path.name]
    return [*held, *(line for line in f"{done.stdout}{done.stderr}".splitlines() if any(part in line for part in parts))]


def test_of_a_database_that_is_away(tmp_path: Path) -> None:
    done = call(tmp_path, STORAGE, TRACKING, "hydra.run.dir=out")
    assert done.returncode == 1, done.stderr
    assert "study.storage=postgresql://me:***@127.0.0.1:1/studies" in done.stderr
    assert "UserWarning: saw http://me:***@host and ***" in done.stderr
    assert (tmp_path / "out/.hydra/overrides.yaml").is_file()
    assert leaks(tmp_path, done) == []


def test_of_a_sweep_with_a_traceback(tmp_path: Path) -> None:
    job = ("model.factory=mine:broken", STORAGE, "hydra.sweep.dir=sweep")
    done = call(tmp_path, *job, TRACKING, sweep=True)
    assert "RuntimeError: saw http://me:***@host and ***" in done.stderr
    assert (tmp_path / "sweep/multirun.yaml").is_file()
    assert list(tmp_path.rglob(".hydra/overrides.yaml")) != []
    assert leaks(tmp_path, done) == []


@pytest.mark.slow
def test_of_a_search_whose_server_is_away(tmp_path: Path) -> None:
    few = ("objective=size", "search.trials=1", "sampler=random", "hydra.run.dir=out")
    done = call(tmp_path, TRACKING, *few)
    assert done.returncode == 0, done.stderr
    assert "tracking.mlflow.uri=http://me:***@127.0.0.1:1 does not answer" in done.stderr
    assert (tmp_path / "out/report.html").is_file()
    assert leaks(tmp_path, done) == []
