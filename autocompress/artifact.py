"""The one file that is measured and shipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import DisturbedError


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

    @property
    def is_intact(self) -> bool:
        """Whether the file is still there with the same bytes."""
        try:
            return self.path.stat().st_size == self.size_bytes and sha256_of(self.path) == self.sha256
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Make sure of it.

        Raises:
            DisturbedError: something else removed or changed the file.
        """
        if not self.is_intact:
            raise DisturbedError(self.path)
