"""Starts the command line as a user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SMALL = ("model.factory=small_net:small_net", "model.name=small", "model.train_epochs=0", "timing.seconds=0.05")
"""Overrides for a search that takes seconds."""


def environment(**changes: str) -> dict[str, str]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **changes}


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "autocompress", *arguments]


def run(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(arguments), cwd=folder, env=environment(**changes), capture_output=True, text=True, timeout=240, check=False
    )
