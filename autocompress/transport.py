"""The way to the machine that a target's runtime runs on."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


class Transport(ABC):
    """Starts the process that measures, and brings files there and back. One instance serves one `Device`.

    Every method may raise `ConnectionLostError` when the machine is away for now: the request is made again. It raises
    `UnreachableError` when trying again cannot help.
    """

    here: bool = False
    """Whether it is this machine."""

    @abstractmethod
    def start(self, script: Path, arguments: Sequence[Path | str]) -> subprocess.Popen[str]:
        """Run a Python script there, with text pipes for its input and output; arguments that are paths are sent before."""

    @abstractmethod
    def send(self, path: Path) -> str:
        """Make sure that a file's present content is there; returns its path there."""

    @abstractmethod
    def place(self, path: Path) -> str:
        """The path there of a result that `fetch(path)` will bring."""

    @abstractmethod
    def fetch(self, path: Path) -> None:
        """Bring the result at `place(path)` to `path`; nothing stays behind."""

    def is_lost(self, status: int) -> bool:
        """Whether a process of `start` that ended with this status lost its connection, and did not crash."""
        return False

    @abstractmethod
    def close(self) -> None:
        """End what the other methods left open; they open it anew."""


class LocalTransport(Transport):
    """This machine: files are where they are."""

    here = True

    def start(self, script: Path, arguments: Sequence[Path | str]) -> subprocess.Popen[str]:
        """A session of its own: Ctrl-C reaches the search, which then ends this process in order."""
        command = [sys.executable, "-P", str(script), *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def send(self, path: Path) -> str:
        """The same path."""
        return str(path)

    def place(self, path: Path) -> str:
        """The same path."""
        return str(path)

    def fetch(self, path: Path) -> None:
        """It is there."""

    def close(self) -> None:
        """Nothing is open."""
