"""Files that are there whole or not at all, whenever the process ends."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Replace a file, text as UTF-8, and make its folder where there is none; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
    return path
