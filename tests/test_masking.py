"""Passwords are masked wherever an address may stand; everything else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.masking import mask_files, masked, masked_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a%2Fb%40c@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("two: http://a:b@c and https://d:e@f", "two: http://a:***@c and https://d:***@f"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("http://127.0.0.1:5000/#/experiments/1@2", "http://127.0.0.1:5000/#/experiments/1@2"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("model.factory=my_file:net", "model.factory=my_file:net"),
    ],
)
def test_passwords_of_addresses(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_values_keep_their_form() -> None:
    values = {"study": {"storage": "x://a:b@c", "heartbeat_seconds": 20.0}, "seeds": ["x://a:b@c", 1], "none": None}
    expected = {"study": {"storage": "x://a:***@c", "heartbeat_seconds": 20.0}, "seeds": ["x://a:***@c", 1], "none": None}
    assert masked_values(values) == expected


def test_files_without_a_password_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("study:\n  storage: x://a:b@c/d\n  heartbeat_seconds: 20\n")
    (tmp_path / "hydra.yaml").write_text("plain: true\n")
    before = (tmp_path / "hydra.yaml").stat().st_mtime_ns
    mask_files(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "study:\n  storage: x://a:***@c/d\n  heartbeat_seconds: 20\n"
    assert (tmp_path / "hydra.yaml").stat().st_mtime_ns == before
