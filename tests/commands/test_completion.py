"""What the tabulator key offers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import environment

from autocompress.cli import COMMANDS, JOBS
from autocompress.commands.completion import answered
from autocompress.errors import ConfigError

AUTOCOMPRESS = Path(sys.executable).with_name("autocompress")


def offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, shell: str = "bash"
) -> list[str] | None:
    """The words; None: Hydra is asked."""
    monkeypatch.setenv("COMP_LINE", f"autocompress {typed}")
    monkeypatch.setenv("COMP_POINT", str(len(f"autocompress {typed}")))
    if not answered(["-sc", f"query={shell}"], JOBS, COMMANDS):
        return None
    return capsys.readouterr().out.strip().split("\n" if shell == "fish" else " ")


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert offered(monkeypatch, capsys, "", shell) == [*JOBS, *COMMANDS]
    assert offered(monkeypatch, capsys, "se", shell) == ["search", "sensitivity"]


def test_flags_of_plain_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(monkeypatch, capsys, "doctor --") == ["--help"]


def test_options_are_hydras_and_it_is_asked_without_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    assert offered(monkeypatch, capsys, "search tar") is None
    assert (os.environ["COMP_LINE"], os.environ["COMP_POINT"]) == ("autocompress tar", "16")


def test_other_arguments_are_none_of_its_business() -> None:
    assert not answered(["search", "+experiment=digits"], JOBS, COMMANDS)


def test_an_unknown_shell() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bash'"):
        answered(["-sc", "install=bsh"], JOBS, COMMANDS)


@pytest.mark.skipif(not AUTOCOMPRESS.exists(), reason="autocompress is not installed as a command")
def test_bash_completes_verbs() -> None:
    typed = "autocompress sens"
    script = (
        'eval "$(autocompress -sc install=bash)"; '
        f"COMP_LINE='{typed}' COMP_POINT={len(typed)} COMP_CWORD=1; hydra_bash_completion; echo \"${{COMPREPLY[@]}}\""
    )
    path = f"{AUTOCOMPRESS.parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**environment(), "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["sensitivity"], done.stderr


@pytest.mark.parametrize(("shell", "check"), [("zsh", "autoload -Uz bashcompinit"), ("fish", "")])
def test_other_shells_accept_the_script(shell: str, check: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = subprocess.run(
        [sys.executable, "-m", "autocompress", "-sc", f"install={shell}"], capture_output=True, text=True, check=True
    )
    done = subprocess.run(
        [shell, "-c", f"{check}\nbashcompinit 2>/dev/null\n{script.stdout}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
