"""Secrets are masked wherever they may stand; everything else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autocompress.guarding.masking import mask_files, masked, masked_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a%2Fb%40c@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:a/b@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@ss:w@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("https://host/db?X-Amz-Signature=0123&a=1", "https://host/db?X-Amz-Signature=***&a=1"),
        ("two: http://a:b@c and https://d:e@f", "two: http://a:***@c and https://d:***@f"),
        ("https://0123abcd@host/path", "https://***@host/path"),
        ("host=db password=secret user=me", "host=db password=*** user=me"),
        ("host=db password='a secret' user=me", "host=db password=*** user=me"),
        ("tracking.mine.api_key=0123,seed=1", "tracking.mine.api_key=***,seed=1"),
        ('{"token": "0123", "seed": 1}', '{"token": ***, "seed": 1}'),
        ("HF_TOKEN=0123 autocompress", "HF_TOKEN=*** autocompress"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("http://127.0.0.1:5000/#/experiments/1@2", "http://127.0.0.1:5000/#/experiments/1@2"),
        ("http://host/#/experiments/1/runs?viewStateShareKey=autocompress",) * 2,
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("model.factory=my_file:net", "model.factory=my_file:net"),
        ("model.kwargs.pad_token=0 model.kwargs.tokens=16 tokenizer=fast",) * 2,
        ("expected a key that works without a password (Permission denied)",) * 2,
    ],
)
def test_secrets_in_texts(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "0123-abcd")
    monkeypatch.setenv("PGPASSWORD", "open sesame")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("SECRET_GARDEN", "a-long-name")
    assert masked("0123-abcd, open sesame, 1, a-long-name") == "***, ***, 1, a-long-name"


def test_values_keep_their_form() -> None:
    values = {
        "study": {"storage": "x://a:b@c", "heartbeat_seconds": 20.0},
        "seeds": ["x://a:b@c", 1],
        "none": None,
        "mine": {"api_key": "two words", "password": 12345, "token": None, "access_token": True, "pad_token": "[PAD]"},
    }
    expected = {
        "study": {"storage": "x://a:***@c", "heartbeat_seconds": 20.0},
        "seeds": ["x://a:***@c", 1],
        "none": None,
        "mine": {"api_key": "***", "password": "***", "token": None, "access_token": True, "pad_token": "[PAD]"},
    }
    assert masked_values(values) == expected
    assert masked_values(expected) == expected


def test_files_without_a_secret_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("study:\n  storage: x://a:b@c/d\n  heartbeat_seconds: 20\n")
    (tmp_path / "overrides.yaml").write_text("- +tracking.mine.password='two words'\n- study.storage=x://a:b@c/d\n")
    (tmp_path / "hydra.yaml").write_text("plain:   ${true}\n")
    before = (tmp_path / "hydra.yaml").stat().st_mtime_ns
    mask_files(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"study": {"storage": "x://a:***@c/d", "heartbeat_seconds": 20}}
    overrides = yaml.safe_load((tmp_path / "overrides.yaml").read_text())
    assert overrides == ["+tracking.mine.password=***", "study.storage=x://a:***@c/d"]
    assert (tmp_path / "hydra.yaml").stat().st_mtime_ns == before
