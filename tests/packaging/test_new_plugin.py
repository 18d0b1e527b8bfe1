"""What `autocompress new-plugin` writes is installed, tested and used as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command import SMALL, run
from fresh_environment import create, install

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package was written; the environment lies beside it."""
    folder = tmp_path_factory.mktemp("new")
    python = create(folder / "environment")
    done = run(folder, "new-plugin", "shifts", python=python)
    assert done.returncode == 0, done.stderr
    install(python, folder / "autocompress-shifts", "--editable")
    return folder


def python(written: Path) -> Path:
    return written / "environment/bin/python"


def test_its_tests_pass_untouched(written: Path) -> None:
    done = run(written / "autocompress-shifts", "-q", module="pytest", python=python(written))
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_its_configuration_is_found(written: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "search", "--cfg", "job", "+experiment=shifts", "quantizer.shifts.powers=5", python=python(written))
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["quantizer"] == {"shifts": {"powers": 5}}
    assert config["data"]["factory"].endswith("digits")  # of the experiment that it builds on
    shown = run(tmp_path, "search", "--help", python=python(written)).stdout.splitlines()
    assert {"shifts", "digits"} <= set(next(line for line in shown if line.startswith("experiment:")).replace(",", "").split())


@pytest.mark.slow
def test_a_search_delivers_a_file_with_it(written: Path, tmp_path: Path) -> None:
    layer = {"quantizer": "shifts", "bits": 4}
    (tmp_path / "seed.yaml").write_text(yaml.safe_dump({"version": 1, "layers": {"2": layer, "6": layer}}))
    own = ("quantizer=[shifts]", "quantizer.shifts.powers=5", "tracking=[]", "objective=size")
    done = run(
        *(tmp_path, "search", *SMALL, *own, "search.trials=1", "search.seeds=[seed.yaml]", "hydra.run.dir=out"),
        python=python(written),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["best"]["trial"] == 0, done.stdout
    assert result["versions"]["autocompress-shifts"] == "0.1.0"
    delivered = yaml.safe_load((tmp_path / "out/best/policy.yaml").read_text())
    assert delivered["layers"]["2"].items() >= layer.items()


def test_another_one_of_that_name_is_refused(written: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "new-plugin", "shifts", python=python(written))
    assert done.returncode == 2
    assert "name 'shifts' is taken by plugin shifts of autocompress-shifts 0.1.0" in done.stderr
    assert not list(tmp_path.iterdir())
