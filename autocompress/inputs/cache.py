"""Where what is worth keeping between studies lies: trained checkpoints, and what is known of devices."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/autocompress`, or `~/.cache/autocompress`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autocompress"
