"""A terminal: what a process writes to it is rendered, and keys can be pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte
from command import environment


def rendered(written: str, columns: int, lines: int = 50) -> pyte.Screen:
    """What stands on a screen on which this was written; a line feed also returns to the first column."""
    screen = pyte.Screen(columns, lines)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(written)
    return screen


def text(screen: pyte.Screen) -> list[str]:
    """Its lines without blanks at their ends, and without the empty ones below."""
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, arguments: Sequence[str], folder: Path, columns: int, **variables: str) -> None:
        self.written, self._columns = "", columns
        self._side, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**environment(), "TERM": "xterm-256color", **variables},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (one system call)
        )
        os.close(inner)

    @property
    def screen(self) -> pyte.Screen:
        """What stands there now."""
        return rendered(self.written, self._columns)

    def wait(self, until: Callable[[str], bool] = lambda _: False, seconds: float = 120) -> None:
        """Read until something was written, or the process has ended."""
        end = time.monotonic() + seconds
        while not until(self.written) and time.monotonic() < end:
            try:
                self.written += os.read(self._side, 4096).decode()
            except OSError:  # the other side is closed
                self.process.wait(seconds)
                return

    def press(self, keys: str) -> None:
        """What a person would do."""
        os.write(self._side, keys.encode())

    def close(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._side)
