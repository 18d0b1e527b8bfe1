"""`autocompress plugins`: components by kind, where they come from, and what is not in use and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autocompress.registry import Registry, load_registry


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="autocompress plugins", description=__doc__).parse_args(arguments)
    sys.stdout.write(f"{plugin_table(load_registry())}\n")
    return 0


def plugin_table(registry: Registry) -> str:
    """Components by kind, with where they come from, then what is not in use and why."""
    rows = [
        f"{registered.kind:<10} {registered.name:<14} {registered.plugin.distribution} {registered.plugin.version}"
        for _, registered in sorted(registry.components.items())
    ]
    problems = [
        f"not in use: {plugin.name} of {plugin.distribution} {plugin.version}: {plugin.problem}"
        for plugin in registry.plugins
        if plugin.problem
    ]
    return "\n".join([*rows, *problems])
