"""Keeps files in a folder of the machine that measures, called by the SHA-256 of their content.

Self-contained: it travels as an argument of `python -c`. A request is one JSON object a line, a `put` followed by the file's
bytes; the answer is `{"ok": value}` or `{"error": text}` in a line, that of a `get` followed by the file's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

WEEK_SECONDS = 7 * 24 * 3600.0
CHUNK = 1 << 20


class Store:
    """The folder; what was not used for a week goes when it is opened."""

    def __init__(self, folder: Path, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._folder, self._requests, self._answers = folder, requests, answers
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_file() and time.time() - path.stat().st_mtime > WEEK_SECONDS:
                path.unlink()

    def serve(self) -> None:
        """Answer requests until the other side closes the pipe."""
        for line in self._requests:
            try:
                self._answer(json.loads(line))
            except OSError as error:
                self._say({"error": f"{type(error).__name__}: {error}"})

    def _answer(self, request: dict[str, Any]) -> None:
        path = self._folder / request["name"]
        if request["do"] == "has":
            self._say({"ok": self._has(path)})
        elif request["do"] == "put":
            self._say({"ok": self._put(path, request["size"])})
        elif request["do"] == "get":
            self._get(path)
        elif request["do"] == "drop":
            self._say({"ok": path.unlink(missing_ok=True)})

    def _has(self, path: Path) -> bool:
        """Whether the file is here with the content that its name says; it counts as used now."""
        if not path.is_file() or sha256_of(path) != stem(path):
            return False
        os.utime(path)
        return True

    def _put(self, path: Path, size: int) -> str:
        """Keep the bytes that follow if they are what the name says; returns their SHA-256."""
        partial, digest, left = path.with_name(f"{path.name}.{os.getpid()}"), hashlib.sha256(), size
        try:
            with partial.open("wb") as file:
                while left:
                    chunk = self._read(min(CHUNK, left))
                    left -= len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() == stem(path):
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            while left:
                left -= len(self._read(min(CHUNK, left)))
        return digest.hexdigest()

    def _read(self, size: int) -> bytes:
        chunk = self._requests.read(size)
        if not chunk:
            raise SystemExit("the other side is gone")
        return chunk

    def _get(self, path: Path) -> None:
        """Send a file, and remove it."""
        self._say({"ok": {"size": path.stat().st_size, "sha256": sha256_of(path)}})
        with path.open("rb") as file:
            shutil.copyfileobj(file, self._answers, CHUNK)
        self._answers.flush()
        path.unlink()

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer).encode() + b"\n")
        self._answers.flush()


def stem(path: Path) -> str:
    """The hash in a file's name."""
    return path.name.split(".", 1)[0]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    os.umask(0o077)
    Store(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer).serve()
