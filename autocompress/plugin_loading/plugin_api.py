"""The version of all that a plugin may rely on, and whether a plugin that was written for another version can be used."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, version
from importlib.util import find_spec
from pathlib import Path

from autocompress.errors import PluginError

PLUGIN_API = "1.0"
"""Semantic version of the public names, hooks and promises: `autocompress`, `autocompress.errors`, `autocompress.testing`.

A minor version adds, a major one changes or removes; docs/plugins.md has the policy.
"""

DECLARATION = "AUTOCOMPRESS_API"
"""Name under which a plugin's module says which version it was written for, as a plain text constant."""

_DECLARED = re.compile(rf"""^{DECLARATION}\b[^=\n]*=\s*["']([^"'\n]*)["']""", re.MULTILINE)


def declared_api(entry_point: EntryPoint) -> str | None:
    """What the plugin's module declares; None: nothing.

    Read from its source and not from the module, because one that was written for another version may fail when it is run.
    """
    spec = find_spec(entry_point.module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    found = _DECLARED.search(Path(spec.origin).read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def check_api(declared: str | None, distribution: str) -> None:
    """Make sure that what the plugin was written for is here; one that declares nothing is taken to fit.

    Raises:
        PluginError: another major version, a later minor one, or no version at all.
    """
    if declared is None:
        return
    if not re.fullmatch(r"\d+\.\d+", declared):
        raise PluginError(f'{DECLARATION} = "{declared}" is no version; write for example {DECLARATION} = "{PLUGIN_API}"')
    wanted, here = _parts(declared), _parts(PLUGIN_API)
    if wanted[0] == here[0] and wanted <= here:
        return
    remedy = (
        f"install an earlier {distribution} or a later" if wanted > here else f"install a later {distribution} or an earlier"
    )
    raise PluginError(f"was written for plugin API {declared}; {this_api()}: {remedy} autocompress")


def this_api() -> str:
    """What is here, as part of a sentence."""
    return f"this is autocompress {version('autocompress')} with plugin API {PLUGIN_API}"


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
