"""Passwords stay out of everything that is written or printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.whole_file import write_whole

_IN_ADDRESS = re.compile(r"(://[^/:@\s]*):[^/@\s]+@")
_IN_QUERY = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]+")


def masked(text: str) -> str:
    """The text with `***` for the passwords of addresses: `scheme://user:***@host`, `?password=***`."""
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))


def masked_values(value: Any) -> Any:
    """The same for every text of nested mappings and lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_values(entry) for key, entry in value.items()}
    return [masked_values(entry) for entry in value] if isinstance(value, list) else value


def mask_files(folder: Path) -> None:
    """The same for the YAML files of a folder, where Hydra keeps the configuration as it was given."""
    for path in folder.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if masked(text) != text:
            write_whole(path, masked(text))
