"""Options that take their process along: the third start does not try them again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autocompress.policy import Policy

if TYPE_CHECKING:
    from autocompress.prediction.effects import Journal

ATTEMPT = "attempt"
"""What the journal calls who is at an option: `host`, `pid` (0: nobody any more), and how many processes `died` of it."""

DEATHS = 2
"""As of a trial: one may be chance."""


@contextmanager
def attempt(journal: Journal, policy: Policy) -> Iterator[bool]:
    """The body builds or runs the file of an option, unless this yields False: so many processes died of it."""
    before, here = journal.get(ATTEMPT, policy) or {"host": 0, "pid": 0, "died": 0}, uuid.getnode()
    died = before["died"] + (before["host"] == here and _is_dead(int(before["pid"])))
    if died >= DEATHS:
        yield False
        return
    journal.put(ATTEMPT, policy, {"host": here, "pid": os.getpid(), "died": died})
    try:
        yield True
    finally:
        journal.put(ATTEMPT, policy, {"host": here, "pid": 0, "died": died})


def _is_dead(pid: int) -> bool:
    if pid in (0, os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
