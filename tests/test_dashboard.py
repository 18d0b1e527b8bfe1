"""optuna-dashboard opens a search's study as it is."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autocompress.record import SearchResult

pytest.importorskip("optuna_dashboard")

Ask = Callable[[str], Any]


@pytest.fixture
def ask(searched: SearchResult, tmp_path: Path) -> Iterator[Ask]:
    """What the server answers to a path, over a copy of the study."""
    shutil.copyfile(searched.folder / "study.db", tmp_path / "study.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [
        sys.executable,
        "-m",
        "optuna_dashboard._cli",
        f"sqlite:///{tmp_path}/study.db",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answer(path: str) -> Any:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}") as reply:
                    return json.load(reply)
            except urllib.error.URLError:
                time.sleep(0.1)
        raise AssertionError(f"optuna-dashboard did not answer; it ended with {process.poll()}")

    yield answer
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_the_study_and_its_trials_are_there(ask: Ask, searched: SearchResult) -> None:
    (study,) = ask("studies")["study_summaries"]
    assert study["directions"] == ["minimize"]
    trials = ask(f"studies/{study['study_id']}")["trials"]
    assert [trial["number"] for trial in trials] == [record.number for record in searched.records]
    measured = [record.measurement.latency_ratio for record in searched.records if record.state == "complete"]
    assert [trial["values"] for trial in trials if trial["state"] == "Complete"] == [[ratio] for ratio in measured]
