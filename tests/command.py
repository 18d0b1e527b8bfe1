"""Starts the command line as a user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SMALL = (
    "model.factory=small_net:small_net",
    "model.name=small",
    "model.train_epochs=0",
    "timing.seconds=0.05",
    "sensitivity.seconds=0.05",
    "trial.load_processes=1",
    "probe.enabled=false",
)
"""Overrides for a search that takes seconds."""


def environment() -> dict[str, str]:
    """This environment, with the tests' own modules on the path."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def command(arguments: Sequence[str], module: str = "autocompress", python: Path | str = sys.executable) -> list[str]:
    return [str(python), "-m", module, *arguments]


def run(
    folder: Path, *arguments: str, module: str = "autocompress", python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    call = command(arguments, module, python)
    return subprocess.run(call, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False)
