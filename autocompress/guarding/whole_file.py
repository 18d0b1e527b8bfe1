"""Files and folders that are there whole or not at all, whenever the process ends, or the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_whole(path: Path, content: str | bytes, *, lasting: bool = True) -> Path:
    """Replace a file, text as UTF-8, and make its folder where there is none; returns the path.

    Args:
        lasting: it must survive a loss of power too, for which the disk is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    if lasting:
        _sync(partial)
    partial.replace(path)
    return path


def begun_folder(folder: Path) -> Path:
    """An empty folder beside it, for what `put_in_place` shall put in its place."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def put_in_place(partial: Path) -> Path:
    """Replace the folder that `begun_folder` was asked for by what was written; returns its path."""
    folder, old = partial.with_suffix(""), partial.with_suffix(".old.partial")
    for path in partial.iterdir():
        _sync(path)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _sync(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
