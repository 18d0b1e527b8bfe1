from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from autocompress.measuring import lease as module
from autocompress.measuring.lease import lease, lease_path

HOLDER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lease", sys.argv[1])
lease = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lease)
for _ in range(int(sys.argv[4])):
    with lease.lease(Path(sys.argv[2]), sys.argv[3]):
        print("holds", flush=True)
        time.sleep(float(sys.argv[5]))
"""


def holder(path: Path, log: Path, times: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(module.__file__), str(path), str(log), str(times), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True)


def test_two_processes_never_hold_it_at_the_same_time(tmp_path: Path) -> None:
    path, log = tmp_path / "lease", tmp_path / "log"
    processes = [holder(path, log, 50, 0.002) for _ in range(2)]
    assert [len(process.communicate()[0].split()) for process in processes] == [50, 50]
    held = sorted((json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()), key=lambda entry: entry["start"])
    assert len(held) == 100
    assert len({entry["pid"] for entry in held}) == 2
    assert all(one["end"] <= other["start"] for one, other in pairwise(held))


def test_it_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path / "lease", tmp_path / "log", 1, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    os.kill(process.pid, signal.SIGKILL)
    start = time.monotonic()
    with lease(tmp_path / "lease"):
        assert time.monotonic() - start < 10
    process.communicate()


def test_a_file_that_was_replaced_while_one_waited_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with lease(path):
        waiting = holder(path, tmp_path / "log", 1, 0)
        time.sleep(0.5)
        path.unlink()
        path.touch()
        replaced = path.stat().st_ino
    waiting.communicate()
    with lease(path):
        assert path.stat().st_ino == replaced
    assert json.loads((tmp_path / "log").read_text(encoding="utf-8"))["pid"] == waiting.pid


def test_it_is_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no"), lease(tmp_path / "lease"):
        raise RuntimeError("no")
    with lease(tmp_path / "lease"):
        pass


def test_everyone_on_the_device_uses_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = lease_path()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert lease_path() == before


def test_another_users_file_serves_without_the_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.touch(mode=0o444)
    with lease(path):
        pass


def test_without_file_locks_the_intervals_are_still_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    with lease(tmp_path / "lease", str(tmp_path / "log")):
        assert not (tmp_path / "lease").exists()
    entry = json.loads((tmp_path / "log").read_text(encoding="utf-8"))
    assert entry["start"] <= entry["end"]
