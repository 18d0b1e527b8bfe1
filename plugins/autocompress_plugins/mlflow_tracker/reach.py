"""Whether runs can be kept where they shall be, found out within seconds and without importing MLflow."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from autocompress import masked
from autocompress_plugins.mlflow_tracker.server import answers

_SECONDS = 3.0
_SQLITE = "sqlite:///"


def reached(root: Path, uri: str) -> str:
    """Words for the store; see `open_store` for the arguments.

    Raises:
        OSError: a server does not answer, or a folder or database cannot be written.
    """
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    if uri and not uri.startswith(_SQLITE):
        return f"{urlsplit(uri).scheme} store, tried by the search only"
    return _database(Path(uri.removeprefix(_SQLITE)) if uri else root.expanduser().resolve() / "mlflow.db")


def _server(uri: str) -> str:
    if not answers(uri):
        raise ConnectionError(f"the server {masked(uri)} does not answer; start it, or correct its uri")
    return f"the server {masked(uri)} answers"


def _database(path: Path) -> str:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} cannot be written")
    if there != path:
        return f"{path} will be made by the first search"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        raise OSError(f"{path} is no MLflow database ({error}); move it away") from error
    return f"{path}, {runs} runs"
