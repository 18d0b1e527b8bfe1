"""Which storage a configuration opens, and what a user is told when it cannot be."""

from __future__ import annotations

import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

import autocompress.studies.storage
from autocompress.errors import ConfigError, StorageError
from autocompress.studies import storage
from autocompress.studies.storage import StudySettings, existing_storage, opened_storage


def test_without_an_address_it_is_a_file_of_one_process(tmp_path: Path) -> None:
    with opened_storage(StudySettings(), tmp_path / "new") as storage:
        assert storage.address == f"sqlite:///{tmp_path}/new/study.db"
        assert storage.heartbeat_seconds is None
        with storage.locked("anything") as first, storage.locked("anything", wait=False) as second:
            assert first and second, "there is nobody to lock out"


def test_a_file_is_only_made_by_who_opens_a_study(tmp_path: Path) -> None:
    for there in (False, True):
        with existing_storage(StudySettings(), tmp_path) as storage:
            assert (storage is not None) == (tmp_path / "study.db").exists() == there
        with opened_storage(StudySettings(), tmp_path):
            pass


@pytest.mark.parametrize(
    "address", ["mysql://me:secret@host/db", "sqlite:///study.db", "study.db", "postgresql+psycopg2://h/d"]
)
def test_only_postgresql_is_shared(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected postgresql\+psycopg://user@host/database") as raised:
        opened_storage(StudySettings(address), tmp_path).__enter__()
    assert "secret" not in str(raised.value)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="autocompress[postgres] is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(StorageError, match=r"refused.*expected a running database") as raised:
            opened_storage(StudySettings(f"postgresql://me:secret@127.0.0.1:{port}/db"), tmp_path).__enter__()
    assert f"study.storage=postgresql://me:***@127.0.0.1:{port}/db" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("address", ["postgresql://me:***@host/db", "postgresql://me@host/db?password=***"])
def test_a_masked_password_is_none(address: str) -> None:
    """As in a saved study: libpq finds the right one elsewhere."""
    url = storage._url(address)
    assert (url.password, url.query, url.username) == (None, {}, "me")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'autocompress\[postgres\]'"):
        opened_storage(StudySettings("postgresql+psycopg://127.0.0.1/db"), tmp_path).__enter__()


@pytest.mark.parametrize("name", ["heartbeat_seconds", "wait_seconds"])
def test_times_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"study.{name}=0: expected more than 0"):
        StudySettings(**{name: 0})


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match=r"study .*study.db: file is not a database; the file is damaged; restore it"):
        opened_storage(StudySettings(), tmp_path).__enter__()


def test_a_file_that_stays_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompress.studies.storage, "LOCKED_SECONDS", 0.1)
    with (
        pytest.raises(StorageError, match="database is locked; another program has held it"),
        opened_storage(StudySettings(), tmp_path) as storage,
        closing(sqlite3.connect(tmp_path / "study.db")) as other,
    ):
        other.execute("begin immediate")
        optuna.create_study(storage=storage.rdb)


def test_ctrl_c_in_the_midst_of_a_commit_is_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened_storage(StudySettings(), tmp_path):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise sqlalchemy.exc.InvalidRequestError("This transaction is closed")
            except sqlalchemy.exc.InvalidRequestError as error:
                raise StorageInternalError("An exception is raised during the commit.") from error
