"""The part of `search.timeout` that recoveries of finalists get, and how they share it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from autocompress.components import Recovery

LARGEST_SHARE = 0.5
"""Of the time of a search; trials have at least the rest."""


def recovery_seconds(recoveries: Sequence[Recovery], finalists: int, timeout: float | None) -> float:
    """Seconds that trials leave: the time limits of the recoveries for each finalist, but at most half of `timeout`.

    Args:
        timeout: of the search; None: it has no limit.
    """
    wanted = finalists * sum(recovery.seconds or 0.0 for recovery in recoveries)
    return wanted if timeout is None else min(wanted, LARGEST_SHARE * timeout)


def in_turn(recoveries: Sequence[Recovery], end: float) -> Iterator[tuple[Recovery, float]]:
    """The recoveries of one finalist, each with the seconds that it may take when its turn comes, until the time is over.

    One with a time limit gets a part of the time left in proportion to the limits of those that follow, never more than its
    limit; one without may take all.

    Args:
        end: `time.monotonic()` at which the time is over.
    """
    for place, recovery in enumerate(recoveries):
        left = end - time.monotonic()
        if left <= 0:
            return
        limits = sum(other.seconds or 0.0 for other in recoveries[place:])
        yield recovery, min(recovery.seconds, left * recovery.seconds / limits) if recovery.seconds else left
