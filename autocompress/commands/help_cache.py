"""`VERB --help` as it was printed last time: what a plugin can be told takes seconds to load, most of them torch's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from autocompress.guarding.whole_file import write_whole
from autocompress.inputs.cache import cache_folder

PROJECT = "autocompress"


def print_help(verb: str, load: Callable[[], int]) -> int:
    """Print the help of a verb; it is loaded again when anything that is installed has changed.

    Args:
        load: prints it to standard output, and returns or exits with the status.
    """
    path, key = cache_folder() / "help" / f"{verb}.json", _key()
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            sys.stdout.write(kept["text"])
            return 0
    text, status = _printed(load)
    sys.stdout.write(text)
    if status == 0:
        with suppress(OSError):
            write_whole(path, json.dumps({"key": key, "text": text}))
    return status


def _printed(load: Callable[[], int]) -> tuple[str, int]:
    printed, status = io.StringIO(), 0
    with redirect_stdout(printed):
        try:
            status = load()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return printed.getvalue(), status


def _key() -> str:
    """Of everything that help depends on: what is installed, the sources of plugins, and how wide the terminal is."""
    parts = [sys.version, shutil.get_terminal_size().columns, os.environ.get("AUTOCOMPRESS_DISABLED_PLUGINS", "")]
    return hashlib.sha256(json.dumps([*parts, sorted(_installed()), sorted(_sources())]).encode()).hexdigest()


def _installed() -> Iterator[tuple[str, int]]:
    """Each distribution's folder, whose name has its version, and when it was written."""
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):
            found = [entry for entry in os.scandir(folder) if entry.name.endswith((".dist-info", ".egg-info"))]
            yield from ((entry.path, entry.stat().st_mtime_ns) for entry in found)


def _sources() -> Iterator[tuple[str, int]]:
    """Every package that registers plugins, and when its newest file was written: an editable one changes in place."""
    plugins = entry_points(group=PROJECT)
    for name in {PROJECT, *(plugin.module.partition(".")[0] for plugin in plugins)}:
        spec = find_spec(name)
        folders = [] if spec is None else [*(spec.submodule_search_locations or [])]
        files = [path for folder in folders for path in Path(folder).rglob("*") if path.suffix in (".py", ".yaml")]
        files += [Path(spec.origin)] if spec is not None and spec.origin and not folders else []
        yield name, max((path.stat().st_mtime_ns for path in files), default=0)
