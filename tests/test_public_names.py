"""What strangers are shown and what they install imports nothing but the plugin API."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import autocompress
from autocompress import errors, testing
from autocompress.commands.new_plugin import KIND_TO_GROUP, Plugin

ROOT = Path(__file__).parents[1]

PUBLIC = {
    "autocompress": set(autocompress.__all__),
    "autocompress.testing": set(testing.__all__),
    "autocompress.errors": {name for name, _ in inspect.getmembers(errors, inspect.isclass)},
}

SOURCES = {
    **{str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests/thirdparty").rglob("*.py")},
    **{
        f"new-plugin --kind {kind}: {path}": text
        for kind in KIND_TO_GROUP
        for path, text in Plugin("my_own", kind).files().items()
        if path.endswith(".py")
    },
    **{
        f"{page.name}: {number}": block
        for page in (ROOT / "README.md", ROOT / "docs/plugins.md")
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    },
}


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of whatever is imported from autocompress and its bundled plugins."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


OURS = {"autocompress", "autocompress_plugins"}


@pytest.mark.parametrize("place", SOURCES)
def test_only_public_names_are_imported(place: str) -> None:
    private = {(module, name) for module, name in imported(SOURCES[place]) if name not in PUBLIC.get(module, set())}
    assert private == set()


def test_there_are_sources_and_they_import_something() -> None:
    assert len([place for place in SOURCES if "thirdparty" in place]) >= 2
    assert sum(len(list(imported(source))) for source in SOURCES.values()) > 40
