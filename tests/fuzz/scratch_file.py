"""A file of its own for each process, for readers that take a path."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch_folder() -> Path:
    """An empty folder, in memory where that can be, that is gone when the process ends."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="autocompress-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(folder)
    return Path(folder.name)


def scratch_file(name: str, content: bytes) -> Path:
    """The file with this content."""
    path = scratch_folder() / name
    path.write_bytes(content)
    return path


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
