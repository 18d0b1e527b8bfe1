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
from dataclasses import dataclass
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


@dataclass
class Postgres:
    """A server that can be killed and started again at the same address."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """With the password."""
        return f"postgresql+psycopg://{USER}:{ENCODED}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it answers."""
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "fsync=off", "-c", "max_connections=200"]
        command = [_binary("postgres"), "-D", self.folder / "data", *options]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **_unprivileged())
        _wait(self.process, self.folder / "log", self.port)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """SIGINT does not wait for open connections, SIGQUIT for nothing."""
        assert self.process is not None
        self.process.send_signal(sign)
        self.process.wait(START_SECONDS)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A running server with an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="autocompress-postgres-"))
    server = Postgres(folder, _free_port())
    try:
        _create(folder, folder / "data")
        server.start()
        try:
            yield server
        finally:
            server.stop()
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
