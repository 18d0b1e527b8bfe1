"""`autocompress plugins --check`: a verdict on what is installed, without a test file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.commands import plugin_list
from autocompress.errors import ConfigError

Install = Callable[..., None]

OBSERVERS = """
from autocompress import Observer
from autocompress.errors import ConfigError

@dataclass
class Wide(Observer):
    name = "wide"
    reach: float = 1e9

    def __post_init__(self):
        if self.reach < 0:
            raise ConfigError(f"observer.wide.reach={self.reach}: expected at least 0")

    def update(self, batch):
        pass

    def range(self, bits):
        return -self.reach, self.reach

@hookimpl
def autocompress_observers():
    return [Wide]
"""


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = plugin_list.main(["--check", *arguments])
    return status, capsys.readouterr().out


def test_kept_promises_are_listed_whatever_the_folder_says(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-flag\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('must not be read')")
    monkeypatch.chdir(tmp_path)
    install("stranger", mine=OBSERVERS)
    status, text = shown(capsys, "stranger")
    lines = text.splitlines()
    assert lines[0] == "observer wide, from plugin mine of stranger 1.2"
    assert all(line.startswith("  kept    ") for line in lines[1:-1])
    assert "  kept    is finite before any batch: A tensor that calibration never reached has a range." in lines
    assert lines[-1] == f"{len(lines) - 2} of {len(lines) - 2} promises are kept."
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pytest.ini", "conftest.py"}


def test_a_broken_promise_is_told_with_its_cases_and_values(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("stranger", mine=OBSERVERS)
    status, text = shown(capsys, "wide", "reach=0.1")
    assert status == 1
    broken = text.partition("  BROKEN  range covers most values: ")[2].splitlines()
    assert broken[1].startswith("          in 14 of 18 cases (") and "signed" in broken[1]
    assert "assert " in broken[2] + broken[3]
    assert "of 9 promises are kept." in text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["reach=-1"], r"observer wide cannot be made: observer.wide.reach=-1.0: expected at least 0"),
        (["raech=1"], r"observer wide cannot be made: Key 'raech' not in 'Wide'"),
        (["reach=far"], r"observer wide cannot be made: Value 'far' of type 'str' could not be converted to Float"),
    ],
)
def test_settings_that_are_not_allowed_are_told(install: Install, settings: list[str], reason: str) -> None:
    install("stranger", mine=OBSERVERS)
    with pytest.raises(ConfigError, match=reason):
        plugin_list.main(["--check", "wide", *settings])


def test_settings_without_a_default_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"metric function cannot be made: .*path.*--check function SETTING=VALUE"):
        plugin_list.main(["--check", "function"])


def test_without_pytest_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs pytest, which is not installed: pip install pytest"):
        plugin_list.main(["--check", "minmax"])
