"""The one file that is measured and shipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A model file: where it is, how many bytes it has, and their SHA-256 (hex)."""

    path: Path
    format: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, format: str) -> Artifact:
        """Describe a file that exists."""
        return cls(path=path, format=format, size_bytes=path.stat().st_size, sha256=sha256_of(path))
