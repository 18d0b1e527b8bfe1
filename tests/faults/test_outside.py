"""Disks, locks, files and clocks that fail a search: nothing is lost, and one line says what to do.

The short form is the tests of each part: `test_trial`, `test_device`, `test_storage`, `test_held_folder`, `test_whole_file`.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.kills import TRACEBACK, accounts, broken_files, finished
from tests.faults.nursery import SMALL, Nursery, Started

pytestmark = pytest.mark.slow

SEARCH = ("search", *SMALL, "objective=size", "search.finalists=1")


def told(search: Started) -> str:
    """The last line; there is no traceback."""
    assert TRACEBACK not in search.log, search.log
    return search.log.splitlines()[-1]


def resumes(home: Nursery, folder: Path, *arguments: str) -> None:
    """The next start finds every trial, adds one and delivers; each is once in Optuna and in MLflow."""
    before = finished(folder)
    search = home.run(folder, *SEARCH, *arguments, f"search.trials={len(before) + 1}")
    assert search.status == 0, search.log
    after = finished(folder)
    assert {number: after[number] for number in before} == before
    assert len(after) == len(before) + 1
    assert accounts(folder) == ([], [])
    assert broken_files(folder / "out") == []


def wait_for(home: Nursery, search: Started, text: str) -> None:
    while text not in search.log:
        assert home.poll(search, 0.02) is None, search.log


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own; skips where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_a_line_and_the_search_goes_on_when_there_is_room(home: Nursery, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-o", "size=40m") as disk:
        search = home.start(disk, *SEARCH, "search.trials=40")
        wait_for(home, search, "[2/40]")
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
            while True:
                ballast.write(bytes(4096))
        assert home.wait(search) == 1, search.log
        assert "finished trials are kept" in told(search)
        assert search.orphans() == []
        (disk / "ballast").unlink()
        resumes(home, disk)


def test_a_limit_of_file_sizes_is_told(home: Nursery, tmp_path: Path) -> None:
    search = home.run(tmp_path, *SEARCH, "search.trials=2", limits={"RLIMIT_FSIZE": 20_000})
    assert search.status == 1
    assert "File too large" in told(search)
    resumes(home, tmp_path)


def test_a_read_only_folder_is_told(home: Nursery, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-o", "ro") as disk:
        search = home.run(tmp_path, *SEARCH, f"hydra.run.dir={disk}/out")
        assert search.status == 1
        assert f"Read-only file system: {disk}/out" in told(search)


def test_a_locked_study_is_waited_for(home: Nursery, tmp_path: Path) -> None:
    search = home.start(tmp_path, *SEARCH, "search.trials=4")
    wait_for(home, search, "[1/4]")
    with closing(sqlite3.connect(tmp_path / "out/study.db", timeout=30)) as other:
        other.execute("begin immediate")
        time.sleep(1.5)
        assert "[4/4]" not in search.log
        other.rollback()
    assert home.wait(search) == 0, search.log
    assert accounts(tmp_path) == ([], [])


def test_a_study_that_stays_locked_ends_the_search(home: Nursery, tmp_path: Path) -> None:
    soon = "import autocompress.studies.storage as storage; storage.LOCKED_SECONDS = 0.5"
    search = home.start(tmp_path, *SEARCH, "search.trials=40", before=soon)
    wait_for(home, search, "[1/40]")
    with closing(sqlite3.connect(tmp_path / "out/study.db", timeout=30)) as other:
        other.execute("begin immediate")
        assert home.wait(search) == 1, search.log
    assert "another program has held it" in told(search)
    resumes(home, tmp_path)


def test_a_folder_belongs_to_one_search(home: Nursery, tmp_path: Path) -> None:
    first = home.start(tmp_path, *SEARCH, "search.trials=40")
    wait_for(home, first, "export: ")
    second = home.run(tmp_path, *SEARCH, "search.trials=40")
    assert second.status == 2
    assert f"output folder {tmp_path}/out: process {first.pid} is at work in it" in told(second)
    first.send(signal.SIGKILL)
    assert home.wait(first) == -signal.SIGKILL
    resumes(home, tmp_path)


@pytest.mark.parametrize("name", ["fp32.onnx", "cache/search.npy"])
def test_files_that_vanish_are_no_fault_of_a_candidate(home: Nursery, tmp_path: Path, name: str) -> None:
    search = home.start(tmp_path, *SEARCH, "search.trials=40")
    wait_for(home, search, "[1/40]")
    (tmp_path / "out" / name).unlink()
    assert home.wait(search) == 1, search.log
    assert f"out/{name}: something else removed or changed this file" in told(search)
    assert [record for record in finished(tmp_path).values() if '"failed"' in record] == []
    resumes(home, tmp_path)


@pytest.mark.parametrize("cut", [True, False])
def test_a_candidate_that_vanishes_before_it_is_measured(home: Nursery, tmp_path: Path, cut: bool) -> None:
    act = "os.truncate(path, 100)" if cut else "path.unlink()"
    before = f"""
import os
from autocompress.accuracy.evaluation import Evaluator
check = Evaluator.check
def spoil(self, path, images):
    if path.name == "t0001.onnx":
        {act}
    check(self, path, images)
Evaluator.check = spoil
"""
    search = home.run(tmp_path, *SEARCH, "search.trials=3", before=before)
    assert search.status == 1
    assert "t0001.onnx: something else removed or changed this file" in told(search)
    assert list(finished(tmp_path)) == [0]
    resumes(home, tmp_path)


def test_files_that_are_cut_or_gone_between_runs_are_made_again(home: Nursery, tmp_path: Path) -> None:
    assert home.run(tmp_path, *SEARCH, "search.trials=2").status == 0
    out = tmp_path / "out"
    for path in [*out.glob("*.json"), *out.glob("*.jsonl"), *out.glob("*.html"), *out.glob("*.onnx"), *out.glob("studies/*")]:
        os.truncate(path, path.stat().st_size // 2)
    (out / "best/model.onnx").unlink()
    (out / "example.npy").unlink()
    resumes(home, tmp_path)


def test_a_damaged_study_is_told(home: Nursery, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/study.db").write_bytes(b"no database" * 1000)
    search = home.run(tmp_path, *SEARCH)
    assert search.status == 1
    assert "out/study.db: file is not a database; the file is damaged; restore it" in told(search)


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps_changes_nothing(home: Nursery, tmp_path: Path, jump: float) -> None:
    """After the first trial, and back between the two runs."""
    before = f"""
import time
real, begin = time.time, time.monotonic()
time.time = lambda: real() + ({jump} if time.monotonic() - begin > 3 else 0.0)
"""
    search = home.run(tmp_path, *SEARCH, "search.trials=3", "search.timeout=600", before=before)
    assert search.status == 0, search.log
    assert json.loads((tmp_path / "out/result.json").read_text())["seconds"] < 240
    resumes(home, tmp_path)


def test_a_killed_runner_costs_nothing(home: Nursery, tmp_path: Path) -> None:
    search = home.start(tmp_path, *SEARCH, "search.trials=4")
    wait_for(home, search, "[1/4]")
    for process in search.processes():
        if process.pid != search.pid:
            process.send_signal(signal.SIGKILL)
    assert home.wait(search) == 0, search.log
    assert [record for record in finished(tmp_path).values() if '"failed"' in record] == []
    assert accounts(tmp_path) == ([], [])
