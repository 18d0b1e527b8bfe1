"""What the doctor finds where something is wrong, and that it finds nothing where all is well."""

from __future__ import annotations

import importlib.metadata
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
from autocompress_plugins.mlflow_tracker import MlflowTracker
from autocompress_plugins.onnxruntime_cpu import OnnxRuntime

from autocompress.commands import doctor, machine_checks
from autocompress.commands.check import Check, guarded
from autocompress.commands.device_checks import device_checks, tiny_net
from autocompress.errors import ConfigError
from autocompress.registry import load_registry

UNREACHABLE = "http://127.0.0.1:9"


def test_a_line_says_what_to_do() -> None:
    assert Check("disk", "all is well").lines(60) == "OK    disk        all is well"
    assert Check("disk", "little", "free some").lines(60) == "note  disk        little: free some"
    wrapped = Check("disk", "no space " * 10, "free some", usable=False).lines(60).split("\n")
    assert wrapped[0].startswith("FAIL  disk        no space")
    assert all(line.startswith(" " * 18) and len(line) <= 60 for line in wrapped[1:])


def test_a_check_that_raises_has_failed() -> None:
    def broken() -> Check:
        raise OSError("no such\ndevice")

    check = guarded("disk", broken)
    assert (check.state, check.found) == ("FAIL", "OSError: no such device")


def test_versions_of_what_is_installed() -> None:
    check = machine_checks.versions()
    assert check.state == "OK"
    assert f"onnxruntime=={onnxruntime.__version__}" in check.found


def test_a_version_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.9.0" if name == "optuna" else known(name))
    check = machine_checks.versions()
    assert (check.state, check.advice) == ("FAIL", "pip install 'optuna<6,>=5.0'")


def test_folders(tmp_path: Path) -> None:
    assert machine_checks.folder("cache", tmp_path / "not/yet").state == "OK"
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"
    check = machine_checks.folder("cache", Path("/proc/autocompress"))
    assert (check.state, check.advice) == ("FAIL", "set XDG_CACHE_HOME to another folder")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((1 << 20, "FAIL"), (1 << 30, "note"), (1 << 40, "OK")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert machine_checks.folder("cache", tmp_path).state == state


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, 1.5, 1 << 30),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        ({}, None, None),
    ],
)
def test_limits_of_containers(tmp_path: Path, files: dict[str, str], cores: float | None, memory: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert (machine_checks.cgroup_cores(tmp_path), machine_checks.cgroup_memory(tmp_path)) == (cores, memory)


def test_more_threads_than_cores() -> None:
    assert machine_checks.cores(1).state == "OK"
    assert machine_checks.cores(4096).state == "note"


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    assert machine_checks.data().state == "OK"
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "absent"))
    assert machine_checks.data().state == "FAIL"
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path))
    assert machine_checks.data().state == "OK"


def test_a_plugin_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DISABLED_PLUGINS", "off")
    points = [
        importlib.metadata.EntryPoint(name, value, "autocompress") for name, value in (("bad", "absent_module"), ("off", "x"))
    ]
    check = machine_checks.plugins(load_registry(points))
    assert check.state == "FAIL"
    assert "bad of unknown unknown did not load (ModuleNotFoundError" in check.advice
    assert "off disabled by" in check.found
    assert machine_checks.plugins(load_registry(points[1:])).state == "OK"


def test_where_runs_would_be_kept(tmp_path: Path) -> None:
    study = tmp_path / "outputs/study"
    assert MlflowTracker().reach(study) == f"{tmp_path}/outputs/mlflow/mlflow.db will be made by the first search"
    assert list(tmp_path.iterdir()) == []
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (id int)")
    assert MlflowTracker(root=str(tmp_path)).reach(study) == f"{tmp_path}/mlflow.db, 0 runs"
    (tmp_path / "mlflow.db").write_bytes(b"something else, and long enough to be read as a header" * 100)
    with pytest.raises(OSError, match="is no MLflow database"):
        MlflowTracker(root=str(tmp_path)).reach(study)
    with pytest.raises(ConnectionError, match=r"the server http://user:\*\*\*@127\.0\.0\.1:9 does not answer"):
        MlflowTracker(uri="http://user:secret@127.0.0.1:9").reach(study)


def test_the_tiny_net_computes_what_numpy_does(tmp_path: Path) -> None:
    model, inputs, expected = tiny_net(tmp_path)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: np.load(inputs)})
    assert expected.shape == found.shape
    assert expected.any()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@dataclass
class Absent(OnnxRuntime):
    """A target whose runtime is not installed."""

    name: ClassVar[str] = "absent"  # type: ignore[misc]
    session_file: ClassVar[Path] = Path(__file__).parents[1] / "absent_session.py"  # type: ignore[misc]


def test_a_runtime_that_does_not_start_is_told_once() -> None:
    (check,) = device_checks(Absent())
    assert (check.name, check.state) == ("runtime", "FAIL")


def answers(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, dict[str, str], str]:
    """The exit status, the state of each line by its name, and everything printed."""
    status, printed = doctor.main(arguments), capsys.readouterr().out
    words = [line.split() for line in printed.splitlines() if not line.startswith(" ")]
    return status, {line[1]: line[0] for line in words if line[0] in ("OK", "note", "FAIL")}, printed


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    status, states, printed = answers(capsys, [])
    assert status == 0
    names = ["versions", "cache", "outputs", "data", "plugins", "cores", "mlflow", "runtime", "processor", "timing"]
    assert list(states) == names
    assert "FAIL" not in states.values()
    assert "cannot be told apart on this machine" in " ".join(printed.split())
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autocompress.commands.device_checks.SECONDS", 0.1)
    status, states, printed = answers(capsys, [f"tracking.mlflow.uri={UNREACHABLE}"])
    assert (status, states["mlflow"]) == (1, "FAIL")
    assert "start it, or correct its uri" in " ".join(printed.split())


def test_wrong_settings_are_told_as_by_a_search() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'target\.onnxruntime\.threads'"):
        doctor.main(["target.onnxruntime.thread=2"])
