"""What `autocompress new-plugin` writes, and what it refuses; tests/packaging installs and uses it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from autocompress.commands import new_plugin
from autocompress.commands.new_plugin import KIND_TO_GROUP, Plugin
from autocompress.errors import ConfigError
from autocompress.registry import KINDS, load_registry


def test_every_kind_of_component_can_be_written() -> None:
    assert set(KIND_TO_GROUP.values()) == set(KINDS)


@pytest.mark.parametrize("kind", KIND_TO_GROUP)
def test_files_are_whole(kind: str) -> None:
    written = Plugin("my_own", kind).files()
    for path, text in written.items():
        assert "__NAME__" not in path + text and "__API__" not in text, path
    module = ast.parse(written["autocompress_my_own/__init__.py"])
    assert "MyOwn" in {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    project = tomllib.loads(written["pyproject.toml"])
    assert project["project"]["name"] == "autocompress-my-own"
    assert project["project"]["entry-points"]["autocompress"] == {"my_own": "autocompress_my_own"}
    packages = {str(Path(path).parent).replace("/", ".") for path in written if path.endswith("__init__.py")}
    assert packages == set(project["tool"]["setuptools"]["packages"])
    workflow = yaml.safe_load(written[".github/workflows/test.yml"])
    assert workflow["jobs"]["test"]["steps"][2] == {"run": "pip install -e '.[test]'"}
    chosen = yaml.safe_load(written["autocompress_my_own/conf/experiment/my_own.yaml"])["defaults"][1]
    assert chosen[f"override /{KIND_TO_GROUP[kind]}"] in ("my_own", ["my_own"])


def test_what_is_written_is_formatted(tmp_path: Path) -> None:
    for kind in KIND_TO_GROUP:
        new_plugin.write(Plugin("my_own", kind), tmp_path / kind)
    ruff = [sys.executable, "-m", "ruff"]
    rules = ("--isolated", "--select=E,F,I,UP,B,SIM", "--ignore=B905", "--line-length=120")
    subprocess.run([*ruff, "check", "--no-cache", *rules, tmp_path], check=True)
    subprocess.run([*ruff, "format", "--no-cache", "--isolated", "--line-length=120", "--check", tmp_path], check=True)


NO_NAMES = [
    "Upper",
    "with-dash",
    "1st",
    "class",
    "",
    "_private",
    "a__b",
    "a/../b",
    "größe",
    "a b",
    "trailing_",
    "line\n",
    "null",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a Python name"):
        new_plugin.check_name(Plugin(name, "quantizer"), load_registry())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int8", "name 'int8' is taken by plugin affine of autocompress"),
        ("affine", "name 'affine' is taken by plugin affine of autocompress"),
        ("plugins", "a package autocompress_plugins is installed"),
        ("quantizer", "name 'quantizer' means something else in the code of a quantizer"),
        ("torch", "name 'torch' means something else"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        new_plugin.check_name(Plugin(name, "quantizer"), load_registry())


def test_one_name_may_serve_another_kind() -> None:
    new_plugin.check_name(Plugin("int8", "pruner"), load_registry())


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_plugin.main(["mine"]) == 0
    assert "pip install -e '.[test]'" in capsys.readouterr().out
    (tmp_path / "autocompress-mine" / "README.md").write_text("changed")
    with pytest.raises(ConfigError, match="folder autocompress-mine is there already; name another: --folder PATH"):
        new_plugin.main(["mine"])
    assert (tmp_path / "autocompress-mine" / "README.md").read_text() == "changed"
    assert new_plugin.main(["mine", "--kind", "target", "--folder", "deep/er"]) == 0
    assert (tmp_path / "deep" / "er" / "autocompress_mine" / "session.py").is_file()
