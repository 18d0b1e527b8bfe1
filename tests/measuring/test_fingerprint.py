from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from autocompress.measuring import fingerprint as module
from autocompress.measuring.fingerprint import device_name, fingerprint


def test_device_is_named_for_people() -> None:
    assert device_name().endswith(f"({platform.machine()})")
    assert len(device_name()) > len(platform.machine()) + 3


def test_what_a_latency_depends_on() -> None:
    found = fingerprint(2, "runtime 1.0")
    assert (found["device"], found["threads"], found["runtime"]) == (device_name(), 2, "runtime 1.0")
    assert found["cores"] == os.cpu_count()
    assert found["load"] is None or found["load"] >= 0


def test_flags_that_kernels_are_chosen_by_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpuinfo", {"flags": "fpu avx2 avx512_vnni smep", "Features": "", "model name": "x"}.get)
    assert fingerprint(1, "r")["flags"] == ["avx2", "avx512_vnni"]


def test_its_id_changes_with_the_environment_but_not_with_the_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "GOVERNOR", tmp_path / "governor")
    before = fingerprint(1, "r")
    assert before["governor"] is None
    monkeypatch.setattr(os, "getloadavg", lambda: (17.0, 0.0, 0.0))
    assert fingerprint(1, "r")["id"] == before["id"]
    assert fingerprint(1, "r")["load"] == 17
    (tmp_path / "governor").write_text("powersave\n", encoding="utf-8")
    saving = fingerprint(1, "r")
    assert saving["governor"] == "powersave"
    assert len({before["id"], saving["id"], fingerprint(2, "r")["id"], fingerprint(1, "r 2")["id"]}) == 4
