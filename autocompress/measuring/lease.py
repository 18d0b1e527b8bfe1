"""One measurement on a device at a time, whoever asks for it.

Self-contained: standard library only, since it travels with the runner. The runner is on the device, so a lock of the device's
operating system serves processes of this machine and of all others alike, and is freed when its holder dies.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    sys.stderr.write("no file locks on this system: measurements of several processes on this device may overlap\n")
    fcntl = None  # type: ignore[assignment]

NAME = "autocompress.lease"


def lease_path() -> Path:
    """The same for everyone on the device, whatever their environment says."""
    return Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()) / NAME  # nosec B108  # nothing is written; no link


@contextmanager
def lease(path: Path, log: str = "") -> Iterator[None]:
    """Wait for the device and hold it.

    Args:
        log: file to which `{"pid", "start", "end"}` is appended for each holding, in seconds of the device's monotonic clock;
            empty: none.
    """
    descriptor = _locked(path) if fcntl else None
    start = time.monotonic()
    try:
        yield
    finally:
        if log:
            _append(log, {"pid": os.getpid(), "start": start, "end": time.monotonic()})
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of the file that lies at the path now; someone may clean up while we wait."""
    while True:
        descriptor = _opened(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _opened(path: Path) -> int:
    """Reading is enough for a lock, so another user's file serves too; it is created only where there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _append(log: str, entry: dict[str, float]) -> None:
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
