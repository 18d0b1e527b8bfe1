"""An output folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocompress.errors import ConfigError

NAME = ".lock"


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of an output folder; the lock is the operating system's and ends with its holder.

    Raises:
        ConfigError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"output folder {folder}: process {file.read().strip() or 'unknown'} is at work in it; wait for that one, or "
                "set another folder (hydra.run.dir)"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
