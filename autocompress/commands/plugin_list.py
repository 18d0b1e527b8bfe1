"""`autocompress plugins`: components, where they come from, their settings, and what is not in use and why."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, cast

from autocompress.commands.plugin_check import check
from autocompress.errors import ConfigError
from autocompress.plugin_loading.plugin_api import PLUGIN_API
from autocompress.registry import Registered, Registry, load_registry
from autocompress.suggestion import nearest

HEADINGS = ("KIND", "NAME", "FROM", "SETTINGS")

EPILOG = """
autocompress plugins                     every component; a search takes them as KIND=NAME or KIND=[NAME,NAME]
autocompress plugins gptq                what one is and does, and what its settings mean
autocompress plugins --check gptq        whether it keeps the promises of its kind (needs pytest); 0: yes, 1: no
autocompress plugins --check gptq bits=[3]   the same with other settings than its own
"""


def main(arguments: Sequence[str]) -> int:
    """Print the table, or tell about one component; returns the exit status.

    Raises:
        ConfigError: there is no such component, or its settings are not allowed.
    """
    options = _parser().parse_args(arguments)
    registry = load_registry()
    if options.name is None:
        if options.check:
            raise ConfigError("autocompress plugins --check: say of which component or plugin, for example --check int8")
        sys.stdout.write(f"{plugin_table(registry, _width())}\n")
        return 0
    found = _named(registry, options.name)
    if options.check:
        return int(not check(found, options.settings))
    sys.stdout.write("\n\n".join(map(_description, found)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("autocompress plugins", description=__doc__, epilog=EPILOG, formatter_class=plain)
    parser.add_argument("--check", action="store_true", help="run the contract of autocompress.testing on what NAME brings")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a component, a plugin or a distribution")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE", help="with --check: settings of the component")
    return parser


def _width() -> int | None:
    """Columns of the terminal; None: it is none, so lines stay whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _named(registry: Registry, name: str) -> list[Registered]:
    """What goes by this name: components of any kind, else all of a plugin or a distribution.

    Raises:
        ConfigError: nothing does, or it could not be loaded.
    """
    components = [registered for _, registered in sorted(registry.components.items())]
    of_that_name = [registered for registered in components if registered.name == name]
    found = of_that_name or [entry for entry in components if name in {entry.plugin.name, entry.plugin.distribution}]
    if found:
        return found
    for plugin in registry.plugins:
        if plugin.problem and name in {plugin.name, plugin.distribution}:
            raise ConfigError(f"plugin {plugin} is not in use: {plugin.problem}")
    known = [word for entry in components for word in (entry.name, entry.plugin.name, entry.plugin.distribution)]
    raise ConfigError(f"no component, plugin or distribution '{name}'{nearest(name, known)} (all: autocompress plugins)")


def plugin_table(registry: Registry, width: int | None = None) -> str:
    """Components by kind, then the plugins that say which API they were written for, and those that are not in use.

    Args:
        width: columns of a line; None: as many as it takes.
    """
    rows = [HEADINGS, *(_row(registered) for _, registered in sorted(registry.components.items()))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [line for row in rows for line in _lines(row, widths, width)]
    return "\n".join([*lines, "", *_plugins(registry)])


def _row(registered: Registered) -> tuple[str, str, str, str]:
    settings = " ".join(f"{name}={value}" for name, value in _settings(registered))
    return registered.kind, registered.name, f"{registered.plugin.distribution} {registered.plugin.version}", settings


def _lines(row: Sequence[str], widths: Sequence[int], width: int | None) -> list[str]:
    """A row, its settings below each other in their column where the terminal is too narrow for them."""
    start = "  ".join(text.ljust(column) for text, column in zip(row, widths, strict=False)) + "  "
    room = max(width - len(start), 30) if width else sys.maxsize
    first, *others = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
    return [(start + first).rstrip(), *(" " * len(start) + line for line in others)]


def _settings(registered: Registered) -> Iterator[tuple[str, str]]:
    """Fields and their defaults, as they are written on the command line."""
    for entry in dataclasses.fields(cast(Any, registered.component)):
        made = entry.default_factory is not dataclasses.MISSING
        yield entry.name, _written(cast(Any, entry.default_factory)() if made else entry.default)


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Enum):
        return value.name
    return "???" if value is dataclasses.MISSING else str(value) if value != "" else "''"


def _plugins(registry: Registry) -> Iterator[str]:
    yield f"Plugin API {PLUGIN_API}. What settings mean: autocompress plugins NAME."
    for plugin in registry.plugins:
        if plugin.api and plugin.problem is None:
            yield f"{plugin} was written for API {plugin.api}."
    for plugin in registry.plugins:
        if plugin.problem:
            yield f"Not in use: {plugin}: {plugin.problem}"


def _description(registered: Registered) -> str:
    """What a component's documentation says, with the names of its settings."""
    choice = f"{registered.kind}={registered.name}"
    settings = [f"{registered.kind}.{registered.name}.{name}={value}" for name, value in _settings(registered)]
    return "\n".join([f"{choice}   from {registered.plugin}", "", inspect.getdoc(registered.component) or "", "", *settings])
