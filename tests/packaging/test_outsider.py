"""A package that knows only the public names is installed, seen, and delivers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import SMALL, run

SOURCE = Path(__file__).parents[1] / "thirdparty" / "autocompress-outsider"

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the outsider is installed with pip."""
    folder = tmp_path_factory.mktemp("outsider")
    source = shutil.copytree(SOURCE, folder / "source")
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(source)], check=True)
    return folder / "site"


def seen(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, *arguments, site=site)


def test_it_is_listed_with_its_distribution(tmp_path: Path, site: Path) -> None:
    listed = seen(tmp_path, site, "plugins").stdout
    assert "quantizer  power_of_two   autocompress-outsider" in listed
    assert "pruner     random_keep    autocompress-outsider" in listed


def test_it_is_an_option_in_the_help(tmp_path: Path, site: Path) -> None:
    shown = seen(tmp_path, site, "search", "--help").stdout
    assert "quantizer: estimated, gptq, int4, int8, mean_rounding, power_of_two" in shown
    assert "pruner: importance, random_keep, sparse, stability" in shown


def test_it_is_in_the_file_that_a_search_delivers(tmp_path: Path, site: Path) -> None:
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
    done = seen(tmp_path, site, "search", *overrides, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/result.json").read_text())["best"]["trial"] == 0, done.stdout
    delivered = yaml.safe_load((tmp_path / "out/best/policy.yaml").read_text())
    assert delivered["layers"]["2"].items() >= seed.items()


def test_its_own_tests_pass(tmp_path: Path, site: Path) -> None:
    done = run(tmp_path, "-q", str(SOURCE / "tests"), "-p", "no:cacheprovider", "-x", site=site, module="pytest")
    assert done.returncode == 0, done.stdout[-2000:]
