"""The distribution as a user gets it: what lies in the wheel, and that wheel and editable install run from another folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from fresh_environment import create, install

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
FOLDERS = {"autocompress": "autocompress", "conf": "autocompress/conf", "plugins/autocompress_plugins": "autocompress_plugins"}
"""Source folder to its place in the wheel."""


COMPONENTS = (
    *("int4", "int8", "importance", "sparse", "stability", "minmax", "mse", "percentile", "onnxruntime"),
    *("accuracy", "agreement", "kl", "top5", "random", "tpe", "mlflow"),
)


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Output of a command that has to succeed, without the variables of this process: no PYTHONPATH."""
    done = subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing is left in the project and nothing stale is built from it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that the latter is complete too."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with autocompress installed; the dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wheel":
        install(create(folder), request.getfixturevalue("wheel"))
    else:
        install(create(folder), request.getfixturevalue("source"), "--editable")
    return folder


def test_top_level_names(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert names == {"autocompress", "autocompress_plugins", "autocompress-0.1.0.dist-info"}


def test_every_source_file_is_inside(source: Path, wheel: Path) -> None:
    expected = {
        f"{place}/{path.relative_to(source / folder).as_posix()}"
        for folder, place in FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".tsv", ".txt", ".jinja"} or path.name == "py.typed"
    }
    with ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"autocompress/py.typed", "autocompress_plugins/py.typed", "autocompress/conf/search.yaml"} <= found


def test_metadata(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        text = archive.read("autocompress-0.1.0.dist-info/METADATA").decode()
        assert "autocompress-0.1.0.dist-info/licenses/LICENSE" in archive.namelist()
    lines = text.splitlines()
    assert {"Name: autocompress", "License-Expression: Apache-2.0"} <= set(lines)
    versions = next(line for line in lines if line.startswith("Requires-Python: "))
    assert set(versions.removeprefix("Requires-Python: ").split(",")) == {">=3.11", "<3.14"}


def test_every_module_with_a_hook_is_an_entry_point(wheel: Path) -> None:
    parser = ConfigParser()
    with ZipFile(wheel) as archive:
        parser.read_string(archive.read("autocompress-0.1.0.dist-info/entry_points.txt").decode())
        plugins = {
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.startswith("autocompress_plugins/") and b"@hookimpl" in archive.read(name)
        }
    assert dict(parser["console_scripts"]) == {"autocompress": "autocompress.cli:main"}
    assert dict(parser["autocompress"]) == {module.split(".")[1]: module for module in plugins}


def test_it_is_the_installed_code_that_runs(environment: Path, source: Path, tmp_path: Path) -> None:
    code = "import autocompress, autocompress_plugins; print(autocompress.__file__, autocompress_plugins.__file__)"
    homes = [Path(home) for home in run([environment / "bin/python", "-c", code], tmp_path).split()]
    assert all(home.is_relative_to(source) or home.is_relative_to(environment) for home in homes)


def test_plugins_load_in_another_folder(environment: Path, tmp_path: Path) -> None:
    listed = run([environment / "bin/python", "-m", "autocompress", "plugins"], tmp_path)
    assert {name for line in listed.splitlines() for name in line.split()} >= {*COMPONENTS}
    assert "Error" not in listed
    assert not list(tmp_path.iterdir())


def test_configuration_composes_in_another_folder(environment: Path, tmp_path: Path) -> None:
    search = ("-m", "autocompress", "search", "--cfg", "job", "budget.size_ratio=0.3")
    assert "size_ratio: 0.3" in run([environment / "bin/python", *search], tmp_path)


def test_help_lists_groups_and_options(environment: Path, tmp_path: Path) -> None:
    shown = run([environment / "bin/autocompress", "search", "--help"], tmp_path)
    assert "quantizer: estimated, gptq, int4, int8, mean_rounding\n" in shown
    groups = {line.split(":")[0] for line in shown.splitlines() if line}
    assert groups >= {path.name for path in (ROOT / "conf").iterdir() if list(path.glob("*.yaml"))}
