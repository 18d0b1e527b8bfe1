"""A time limit for what may hang: plugins of strangers, and runtimes."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from autocompress.errors import ConfigError

Answer = TypeVar("Answer")

LONGEST_SECONDS = 1e8
"""Three years: timers of the system take no more than they can count."""

AGAIN_SECONDS = 5.0
"""What swallows the first signal gets another one so much later."""

GRACE_SECONDS = 30.0
"""So long after the limit the whole process ends, when code in C has not come back to Python."""


class TimeUpError(BaseException):
    """The limit is over; not an `Exception`, so that code that survives those ends as well."""


def too_long(seconds: float | None, over: TimeUpError) -> str:
    """What took longer than the configured limit, for people."""
    return f"took longer than search.trial_timeout={seconds:g} seconds: {over}"


def check_limit(setting: str, seconds: float | None) -> None:
    """Make sure that a limit can be kept.

    Raises:
        ConfigError: signals do not reach this thread.
    """
    if seconds is not None and threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            f"{setting}={seconds:g}: a time limit is kept in the main thread only; search there, or without a limit"
        )


def within(seconds: float | None, work: Callable[[], Answer]) -> Answer:
    """What the work returns, unless it takes longer. In the main thread only.

    A signal interrupts Python code and system calls that wait. Code in C that does not return hears no signal: after
    `GRACE_SECONDS` more the process writes where it was to standard error, and ends with status 1. Work with a limit of its own
    does not count towards the limit of the work that it is a part of.

    Args:
        seconds: None: no limit.

    Raises:
        TimeUpError: it took longer; the message says where it was.
    """
    if seconds is None:
        return work()
    handler, start = signal.signal(signal.SIGALRM, _time_up), time.monotonic()
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # whoever did not want to hear it
    delay, interval = _armed(seconds)
    try:
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also when the signal arrived in the lines above
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if delay and handler is _time_up:
            _armed(delay)
        elif delay:
            signal.setitimer(signal.ITIMER_REAL, max(delay - (time.monotonic() - start), 0.001), interval)


def _armed(seconds: float) -> tuple[float, float]:
    """Start the time; returns delay and interval of whoever used the timer before."""
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
    return signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)


def _time_up(number: int, frame: FrameType | None) -> None:
    where = f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}" if frame is not None else "nowhere"
    raise TimeUpError(f"it was in {frame.f_code.co_qualname if frame else 'nothing'} ({where})")
