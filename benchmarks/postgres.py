"""A PostgreSQL server of one's own: on loopback, with a password, in a folder that is thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "autocompress", "s3cret%/word"
ENCODED = "s3cret%25%2Fword"
"""The password as an address has it."""

START_SECONDS = 60


def missing() -> str:
    """Why there can be no server; empty: there can."""
    if _binaries() is None:
        return "no initdb: PostgreSQL is not installed (Debian: postgresql)"
    try:
        import psycopg  # noqa: F401  (only whether it is there)
    except ImportError:
        return "psycopg is not installed: autocompress[postgres]"
    return ""


@contextmanager
def postgres_server() -> Iterator[str]:
    """Starts a server with an empty database; yields its address, password included."""
    folder = Path(tempfile.mkdtemp(prefix="autocompress-postgres-"))
    data, port = folder / "data", _free_port()
    try:
        _create(folder, data)
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off", "-c", "max_connections=200"]
        log = (folder / "log").open("w")
        server = subprocess.Popen(
            [_binary("postgres"), "-D", data, *options], stdout=log, stderr=log, cwd=folder, **_unprivileged()
        )
        try:
            _wait(server, folder / "log", port)
            yield f"postgresql+psycopg://{USER}:{ENCODED}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for open connections
            server.wait(START_SECONDS)
            log.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create(folder: Path, data: Path) -> None:
    account = _unprivileged().get("user")
    secret = folder / "password"
    secret.write_text(PASSWORD, encoding="utf-8")
    if account is not None:
        for path in (folder, secret):
            shutil.chown(path, account)
    arguments = ["-D", str(data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "-N", "-E", "UTF8", "--no-locale"]
    subprocess.run([_binary("initdb"), *arguments], check=True, capture_output=True, cwd=folder, **_unprivileged())


def _unprivileged() -> dict[str, str]:
    """PostgreSQL refuses to run as root; its package has an account for it."""
    return {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}


def _binaries() -> Path | None:
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    on_path = shutil.which("initdb")
    folders = [*found, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _binary(name: str) -> str:
    folder = _binaries()
    assert folder is not None
    return str(folder / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], log: Path, port: int) -> None:
    import psycopg

    end = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)
