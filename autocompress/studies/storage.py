"""Where studies are kept: a SQLite file for one process, or a PostgreSQL database that many processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from sqlalchemy.engine import URL

from autocompress.bounds import check_positive
from autocompress.errors import ConfigError, StorageError
from autocompress.masking import masked

DRIVER = "postgresql+psycopg"
CONNECT_SECONDS = 10

FILE = "study.db"
"""Name of the SQLite file in the output folder."""


@dataclass
class StudySettings:
    """Where the study is kept, by one process or by many.

    Attributes:
        storage: address of a PostgreSQL database that other processes share, `postgresql+psycopg://user@host/database`; null: a
            SQLite file in the output folder, for one process. Passwords are best left to `~/.pgpass` or `PGPASSWORD`.
        heartbeat_seconds: a process says so often that its trial is running; one that misses three times is taken for dead.
        wait_seconds: so long a worker waits for a search to open the study.
    """

    storage: str | None = None
    heartbeat_seconds: float = 20.0
    wait_seconds: float = 120.0

    def __post_init__(self) -> None:
        check_positive("study", self, "heartbeat_seconds", "wait_seconds")


@dataclass(frozen=True)
class Storage:
    """An open storage.

    Attributes:
        address: for people, without password.
        heartbeat_seconds: None: no other process takes part.
        locks: connections that hold a lock as long as they live; None: nobody to lock out.
    """

    rdb: optuna.storages.RDBStorage
    address: str
    heartbeat_seconds: float | None = None
    locks: sqlalchemy.Engine | None = None

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self.rdb.engine.dispose()

    @contextmanager
    def locked(self, what: str, wait: bool = True) -> Iterator[bool]:
        """Keep all other processes of the storage out of something; a process that dies frees its locks.

        Args:
            wait: for another one that has the lock.

        Yields:
            Whether this process has the lock.
        """
        if self.locks is None:
            yield True
        else:
            with _locked(self.locks, what, wait) as has_lock:
                yield has_lock


@contextmanager
def _locked(engine: sqlalchemy.Engine, what: str, wait: bool = True) -> Iterator[bool]:
    """A PostgreSQL advisory lock of the session, which ends with its connection."""
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with engine.connect() as connection:
        taken = connection.scalar(sqlalchemy.text(f"select {function}(hashtextextended(:what, 0))"), {"what": what})
        yield taken is not False


@contextmanager
def opened_storage(settings: StudySettings, folder: Path) -> Iterator[Storage]:
    """The configured storage, closed at the end.

    Args:
        folder: of the SQLite file.

    Raises:
        ConfigError: the address is none, or what it needs is not installed.
        StorageError: the database cannot be reached.
    """
    storage = sqlite_storage(folder / FILE) if settings.storage is None else _postgresql(settings.storage, settings)
    try:
        yield storage
    finally:
        storage.close()


@contextmanager
def existing_storage(settings: StudySettings, folder: Path) -> Iterator[Storage | None]:
    """The same, but None where it is a file that no search has made yet."""
    if settings.storage is None and not (folder / FILE).exists():
        yield None
    else:
        with opened_storage(settings, folder) as storage:
            yield storage


def sqlite_storage(path: Path) -> Storage:
    """A file for one process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rdb = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}})
    sqlalchemy.event.listen(rdb.engine, "connect", _tune_sqlite)
    rdb.engine.dispose()
    return Storage(rdb, f"sqlite:///{path.resolve()}")


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log: a commit survives a killed process without waiting for the disk (forty parameters a trial)."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _postgresql(address: str, settings: StudySettings) -> Storage:
    url, arguments = _url(address), {"connect_args": {"connect_timeout": CONNECT_SECONDS}}
    try:
        locks = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", **arguments)
        with _locked(locks, "autocompress tables"):  # processes that start together would create them together
            engine = {"pool_pre_ping": True, **arguments}
            rdb = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine)
    except ImportError:
        raise ConfigError(
            f"study.storage={masked(address)}: needs psycopg, which is not installed; pip install 'autocompress[postgres]'"
        ) from None
    except sqlalchemy.exc.OperationalError as error:
        said = masked(" ".join(str(error.orig).split()))
        raise StorageError(f"study.storage={masked(address)}: {said}; expected a running database") from None
    return Storage(rdb, masked(address), settings.heartbeat_seconds, locks)


def _url(address: str) -> URL:
    """With the driver that is installed, whatever the address names."""
    try:
        url = sqlalchemy.make_url(address)
    except sqlalchemy.exc.ArgumentError:
        url = None
    if url is None or url.drivername not in (DRIVER, "postgresql"):
        raise ConfigError(
            f"study.storage={masked(address)}: expected {DRIVER}://user@host/database; null is a file in the output folder"
        )
    return url.set(drivername=DRIVER)
