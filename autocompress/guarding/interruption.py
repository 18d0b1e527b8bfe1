"""Ctrl-C that is not lost: Python drops a KeyboardInterrupt that is raised while an object is finalized."""

from __future__ import annotations

import signal
from types import FrameType

_heard: list[int] = []


def listen() -> None:
    """Take SIGTERM for Ctrl-C, and remember both. A SIGINT that is ignored, as in a shell's background jobs, stays so."""
    signal.signal(signal.SIGTERM, _hear)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _hear)


def check() -> None:
    """Interrupt, if a signal came that nothing was told of.

    Raises:
        KeyboardInterrupt: it did.
    """
    if _heard:
        raise KeyboardInterrupt


def answered() -> None:
    """The interruption was heard: what follows goes on until the next one."""
    _heard.clear()


def _hear(number: int, frame: FrameType | None) -> None:
    _heard.append(number)
    raise KeyboardInterrupt
