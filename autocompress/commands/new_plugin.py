"""`autocompress new-plugin NAME`: writes a package that brings a component, ready to be installed and tested."""

from __future__ import annotations

import argparse
import ast
import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from autocompress.errors import ConfigError
from autocompress.plugin_loading.plugin_api import PLUGIN_API
from autocompress.registry import KINDS, Registry, load_registry

KIND_TO_GROUP = {base.__name__.lower(): group for group, base in KINDS.items()}
"""What a component is called to its config group."""

SEVERAL = {"quantizer", "pruner", "recovery", "tracker"}
"""Kinds of which a search may use several, so that they are chosen by a list."""

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "workflow.yml",
    "__PACKAGE__/__init__.py": "components/__KIND__.py",
    "__PACKAGE__/conf/experiment/__NAME__.yaml": "experiment.yaml",
    "tests/test___NAME__.py": "test.py",
}
"""Path in the package to its template."""

VALUES = {"null", "true", "false", "nan", "inf"}
"""What Hydra reads as values on the command line."""

EMPTY_FILES = ("__PACKAGE__/py.typed", "__PACKAGE__/conf/__init__.py")


@dataclass(frozen=True)
class Plugin:
    """What a package to be written is made of.

    Attributes:
        name: of the component and of the plugin.
        kind: quantizer, pruner, observer, ...
    """

    name: str
    kind: str

    @property
    def package(self) -> str:
        """The Python package."""
        return f"autocompress_{self.name}"

    @property
    def distribution(self) -> str:
        """What pip calls it, and the folder."""
        return self.package.replace("_", "-")

    @property
    def choice(self) -> str:
        """What follows the config group and '=' on the command line."""
        return f"[{self.name}]" if self.kind in SEVERAL else self.name

    def files(self) -> dict[str, str]:
        """Path to content of every file."""
        paths = FILES | ({"__PACKAGE__/session.py": "components/session.py"} if self.kind == "target" else {})
        written = {self._filled(path): self.rendered(template) for path, template in paths.items()}
        return written | {self._filled(path): "" for path in EMPTY_FILES}

    def rendered(self, template: str) -> str:
        """The content of one file."""
        path = files("autocompress.commands") / "plugin_template" / f"{self._filled(template)}.txt"
        return self._filled(path.read_text(encoding="utf-8"))

    def _filled(self, text: str) -> str:
        return re.sub("__([A-Z]+)__", lambda word: self._words[word[1]], text)

    @property
    def _words(self) -> Mapping[str, str]:
        group = KIND_TO_GROUP[self.kind]
        return {
            "NAME": self.name,
            "KIND": self.kind,
            "CLASS": "".join(part.capitalize() for part in self.name.split("_")),
            "BASE": KINDS[group].__name__,
            "GROUP": group,
            "CHOICE": self.choice,
            "PACKAGE": self.package,
            "DISTRIBUTION": self.distribution,
            "API": PLUGIN_API,
        }


def main(arguments: Sequence[str]) -> int:
    """Write the package and say what comes next.

    Raises:
        ConfigError: the name cannot be used, or the folder is there already.
    """
    options = _parser().parse_args(arguments)
    plugin = Plugin(options.name, options.kind)
    check_name(plugin, load_registry())
    folder = options.folder or Path(plugin.distribution)
    write(plugin, folder)
    sys.stdout.write(_next_steps(plugin, folder))
    return 0


def _parser() -> argparse.ArgumentParser:
    example = (
        "example: autocompress new-plugin power_of_two && cd autocompress-power-of-two && pip install -e '.[test]' && pytest"
    )
    parser = argparse.ArgumentParser("autocompress new-plugin", description=__doc__, epilog=example)
    parser.add_argument("name", metavar="NAME", help="of the component, as it will stand in configurations: power_of_two")
    parser.add_argument("--kind", choices=sorted(KIND_TO_GROUP), default="quantizer", help="what it is (default: quantizer)")
    parser.add_argument("--folder", type=Path, help="where to write it; must not exist (default: autocompress-NAME)")
    return parser


def check_name(plugin: Plugin, registry: Registry) -> None:
    """Make sure that the name can be used everywhere it stands, and that nothing has it yet.

    Raises:
        ConfigError: it cannot, or something has.
    """
    name, group = plugin.name, KIND_TO_GROUP[plugin.kind]
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name) or name in VALUES:
        raise ConfigError(f"name '{name}': expected a Python name of a-z, 0-9 and single '_', such as power_of_two")
    owners = [registered.plugin for key, registered in registry.components.items() if key == (group, name)]
    owners += [other for other in registry.plugins if other.name == name]
    if owners:
        raise ConfigError(f"name '{name}' is taken by plugin {owners[0]}; choose another (autocompress plugins lists them)")
    if find_spec(plugin.package):
        raise ConfigError(f"name '{name}' is taken: a package {plugin.package} is installed; choose another")
    if any(word in _imported(plugin) for word in (plugin._words["CLASS"], name)):
        raise ConfigError(f"name '{name}' means something else in the code of a {plugin.kind}; choose another")


def _imported(plugin: Plugin) -> set[str]:
    """Names that the component's module imports."""
    tree = ast.parse(plugin.rendered("components/__KIND__.py"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def write(plugin: Plugin, folder: Path) -> None:
    """Write every file.

    Raises:
        ConfigError: the folder exists, or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        for path, text in plugin.files().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(f"folder {folder} is there already; name another: --folder PATH") from error
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be written: {error.strerror}") from error


def _next_steps(plugin: Plugin, folder: Path) -> str:
    group = KIND_TO_GROUP[plugin.kind]
    return f"""{folder}: the {plugin.kind} {plugin.name}, which works; make it yours in {plugin.package}/__init__.py

  cd {folder}
  pip install -e '.[test]'
  pytest
  autocompress search +experiment=digits {group}={plugin.choice}
"""
