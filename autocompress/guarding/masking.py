"""Secrets stay out of everything that is written or printed: of addresses, under names that say so, of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autocompress.guarding.whole_file import write_whole

MASK = "***"

_LEAST_CHARACTERS = 8
"""A value of the environment that is shorter may be part of any word."""

_NAME = (
    r"(?:[\w.-]*(?:password|passwd|passphrase|secret|api_?key|access_?key|secret_?key|private_?key|-signature|credentials?)"
    r"|[\w.-]*(?:access|api|auth|bearer|hub|hf|github|refresh|session)_?token|(?:[\w-]*\.)*token)"
)
"""A name of something secret; `pad_token` and the like are words of language models."""

_IN_ADDRESS = re.compile(r"(://[^/:@\s]*):(?!\d+[/?#])[^\s'\"]*@(?=[^@\s])")
"""SQLAlchemy takes passwords with `/`, MLflow those with `@`; digits and `/` after the colon are a port."""

_USER_OF_HTTP = re.compile(r"(https?://)[^/:@\s]+@", re.IGNORECASE)
"""A token in place of a user."""

_NAMED = re.compile(rf"(?<![\w.-])({_NAME}['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s'\",;&)}}\]]+)", re.IGNORECASE)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"(?:^|_|PG)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|API_?KEY|ACCESS_?KEY|SECRET_?KEY)$")


def masked(text: str) -> str:
    """The text with `***` for what is secret.

    That is passwords of addresses (`scheme://user:***@host`), values of names such as `password=` and `api_key:`, and values
    of environment variables with such names, of eight characters or more, wherever they stand.
    """
    for value in _secrets_of_environment():
        text = text.replace(value, MASK)
    text = _USER_OF_HTTP.sub(rf"\1{MASK}@", _IN_ADDRESS.sub(rf"\1:{MASK}@", text))
    return _NAMED.sub(rf"\1{MASK}", text)


def _secrets_of_environment() -> list[str]:
    named = (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name))
    return [value for value in named if len(value) >= _LEAST_CHARACTERS]


def masked_values(value: Any, name: str = "") -> Any:
    """The same for every text of nested mappings and lists.

    Args:
        name: of the value; that of something secret masks it whole.
    """
    if isinstance(value, Mapping):
        return {key: masked_values(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [masked_values(entry, name) for entry in value]
    if _SECRET_NAME.fullmatch(name) and value and not isinstance(value, bool):
        return MASK
    return masked(value) if isinstance(value, str) else value


def mask_files(folder: Path) -> None:
    """The same for the YAML files of a folder, where Hydra keeps the configuration as it was given."""
    for path in folder.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if masked_values(content) != content:
            write_whole(path, yaml.safe_dump(masked_values(content), sort_keys=False))
