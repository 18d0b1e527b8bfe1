"""Where studies are kept: a SQLite file for one process, or a PostgreSQL database that many processes share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL

from autocompress.bounds import check_positive
from autocompress.errors import ConfigError, StorageError
from autocompress.guarding.masking import MASK, masked

DRIVER = "postgresql+psycopg"
CONNECT_SECONDS = 10
AWAY_SECONDS, AWAY_PAUSE_SECONDS = 300.0, 1.0
"""So long a server that went away is waited for, and between two attempts."""

FILE = "study.db"
"""Name of the SQLite file in the output folder."""

LOCKED_SECONDS = 60
"""So long a SQLite file that another program has locked is waited for."""

_KEPT = "finished trials are kept and the same command resumes"
_DAMAGED = "the file is damaged; restore it from a backup, or move it away to begin anew (MLflow keeps what it was told)"
REMEDIES = {
    "is locked": f"another program has held it for {LOCKED_SECONDS} s; end that one, then {_KEPT}",
    "is full": f"make room, then {_KEPT}",
    "disk I/O error": f"the disk is full or broken; then {_KEPT}",
    "readonly": f"it cannot be written; mend that, then {_KEPT}",
    "unable to open": f"it cannot be read or written; mend that, then {_KEPT}",
    "malformed": _DAMAGED,
    "not a database": _DAMAGED,
}
"""What SQLite says to what to do."""


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
    with _explained(settings.storage or str(folder / FILE)):
        storage = sqlite_storage(folder / FILE) if settings.storage is None else _postgresql(settings.storage, settings)
        try:
            yield storage
        finally:
            storage.close()


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """What the database says, in a line."""
    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.DatabaseError) as error:
        if _is_interruption(error):
            raise KeyboardInterrupt from error
        said = _said(error)
        raise StorageError(masked(f"study {address}: {said}; {_remedy(said)}")) from error


def _is_interruption(error: BaseException | None) -> bool:
    """Whether it began with Ctrl-C, which SQLAlchemy replaces where it comes in the midst of a commit."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_interruption(error.__cause__ or error.__context__)
    )


def _said(error: BaseException) -> str:
    """The database's own words, of what came first."""
    said, cause = str(error), error.__cause__ or error.__context__
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        said = str(error.orig)
    elif cause is not None:
        return _said(cause)
    return " ".join(said.split())


def _remedy(said: str) -> str:
    """What to do about it, by SQLite's own words; the others are a server's."""
    return next((remedy for words, remedy in REMEDIES.items() if words in said), "the same command resumes when it is back")


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
    rdb = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}})
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
    for each in (locks, rdb.engine):
        sqlalchemy.event.listen(each, "do_connect", _connected)
    return Storage(rdb, masked(address), settings.heartbeat_seconds, locks)


def _connected(dialect: Any, _: Any, arguments: Any, options: Any) -> Any:
    """A new connection; a server that was there a moment ago is waited for."""
    end = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.OperationalError:
            if time.monotonic() > end:
                raise
        time.sleep(AWAY_PAUSE_SECONDS)


def _url(address: str) -> URL:
    """With the driver that is installed, whatever the address names."""
    try:
        url = sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of a port that is no number
        url = None
    if url is None or url.drivername not in (DRIVER, "postgresql"):
        raise ConfigError(
            f"study.storage={masked(address)}: expected {DRIVER}://user@host/database; null is a file in the output folder"
        )
    return _without_mask(url.set(drivername=DRIVER))


def _without_mask(url: URL) -> URL:
    """The address of a saved study lacks its password: libpq then finds it in PGPASSWORD or ~/.pgpass."""
    if url.password == MASK:
        url = url._replace(password=None)
    return url.difference_update_query(["password"]) if url.query.get("password") == MASK else url
