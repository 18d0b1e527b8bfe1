"""A server that may be away: asking for it delays nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

PROBE_SECONDS = 2.0
"""A server answers so soon, or is away."""

SHARE = 0.02
"""Of the time of a search, for asking a server that is away whether it is back."""

_BROKEN = 500


@contextmanager
def impatience(seconds: float) -> Iterator[None]:
    """One request takes at most so long and is tried twice, unless the user has set that; MLflow's own is several minutes."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": f"{seconds:.0f}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def answers(uri: str) -> bool:
    """Whether something is there that works, be it only to ask for a password. Databases are taken to be there."""
    if not uri.startswith("http"):
        return True
    try:
        with urlopen(_health(uri), timeout=PROBE_SECONDS):  # nosec B310  # http and https only, see above
            return True
    except HTTPError as answer:
        return answer.code < _BROKEN
    except URLError as error:
        return isinstance(error.reason, SSLError)  # whom to trust is not asked here
    except (OSError, HTTPException):
        return False


def _health(uri: str) -> str:
    """The page that every MLflow server has, without user and password, which `urlopen` does not take."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], f"{parts.path.rstrip('/')}/health", "", ""))


def is_away(uri: str, seconds: float) -> bool:
    """Whether a request that failed after so long did so because of the server, not of what was asked."""
    return uri.startswith("http") and (seconds > PROBE_SECONDS or not answers(uri))


@dataclass
class Outage:
    """Since when a server is away, and when it is asked again.

    Attributes:
        is_on: whether the last attempt failed.
    """

    is_on: bool = False
    _next: float = field(default=0.0, repr=False)

    @property
    def is_due(self) -> bool:
        """Whether another attempt would not cost more than its share of the time."""
        return not self.is_on or time.monotonic() >= self._next

    def begin(self, seconds: float) -> None:
        """An attempt failed that took so long."""
        self.is_on, self._next = True, time.monotonic() + seconds / SHARE

    def end(self) -> None:
        """The server is back."""
        self.is_on = False
