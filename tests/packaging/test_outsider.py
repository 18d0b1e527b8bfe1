"""A package that knows only the public names is installed, seen, and delivers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from command import SMALL, run
from fresh_environment import create, install

SOURCE = Path(__file__).parents[1] / "thirdparty" / "autocompress-outsider"

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment into which the outsider is installed with pip."""
    folder = tmp_path_factory.mktemp("outsider")
    python = create(folder / "environment")
    install(python, shutil.copytree(SOURCE, folder / "source"))
    return python


def seen(folder: Path, python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, *arguments, python=python)


def test_it_is_listed_with_its_distribution(tmp_path: Path, python: Path) -> None:
    listed = [" ".join(line.split()) for line in seen(tmp_path, python, "plugins").stdout.splitlines()]
    assert "quantizer power_of_two autocompress-outsider 0.1.0 narrow=true" in listed
    assert "pruner random_keep autocompress-outsider 0.1.0 seed=0" in listed
    assert "outsider of autocompress-outsider 0.1.0 was written for API 1.0." in listed


def test_it_is_an_option_in_the_help(tmp_path: Path, python: Path) -> None:
    shown = seen(tmp_path, python, "search", "--help").stdout
    assert "quantizer: estimated, gptq, int4, int8, mean_rounding, power_of_two" in shown
    assert "pruner: importance, random_keep, sparse, stability" in shown


def test_it_is_in_the_file_that_a_search_delivers(tmp_path: Path, python: Path) -> None:
    components = (
        "quantizer=[power_of_two]",
        "pruner=[random_keep]",
        "space.structures=[unstructured]",
        "space.sparsities=[0.8]",
    )
    seed = {"quantizer": "power_of_two", "bits": 8, "pruner": "random_keep", "sparsity": 0.8}
    policy = {"version": 1, "layers": {"2": seed, "6": {**seed, "sparsity": 0.0, "pruner": None}}}
    (tmp_path / "seed.yaml").write_text(yaml.safe_dump(policy))
    overrides = (*SMALL, *components, "tracking=[]", "objective=size", "search.trials=1", "search.seeds=[seed.yaml]")
    done = seen(tmp_path, python, "search", *overrides, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/result.json").read_text())["best"]["trial"] == 0, done.stdout
    delivered = yaml.safe_load((tmp_path / "out/best/policy.yaml").read_text())
    assert delivered["layers"]["2"].items() >= seed.items()


def test_its_own_tests_pass(tmp_path: Path, python: Path) -> None:
    done = run(tmp_path, "-q", str(SOURCE / "tests"), "-p", "no:cacheprovider", "-x", python=python, module="pytest")
    assert done.returncode == 0, done.stdout[-2000:]
