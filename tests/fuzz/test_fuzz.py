"""Every reader on inputs that it once failed on and on a few others; `python -m tests.fuzz all` reads a million."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from hydra.core.global_hydra import GlobalHydra

from autocompress.errors import AutocompressError
from tests.fuzz.found import FOUND
from tests.fuzz.targets import TARGETS

INPUTS = {"overrides": 8, "checkpoint": 40, "images": 40, "plugins": 40, "policy_yaml": 60}
"""Slower readers get fewer."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def hydra_ends() -> Iterator[None]:
    """The reader of overrides leaves Hydra running for the next input."""
    yield
    GlobalHydra.instance().clear()


def is_read_or_refused(name: str, data: bytes) -> bool:
    """Whether it was read; a refusal is one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            TARGETS[name].read(data)
        except AutocompressError as error:
            assert "\n" not in str(error)
            return False
    return True


@pytest.mark.parametrize("name", FOUND)
def test_what_once_got_through_is_refused(name: str) -> None:
    for data in FOUND[name]:
        is_read_or_refused(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_read_and_others_are_read_or_refused(name: str) -> None:
    target, random = TARGETS[name], Random(0)
    assert is_read_or_refused(name, target.seeds[0])
    for _ in range(INPUTS.get(name, 150)):
        data = random.choice(target.seeds)
        for _ in range(random.randint(1, 3)):
            data = target.mutate(data, random)
        is_read_or_refused(name, data)


@pytest.mark.slow
def test_the_full_form_runs(tmp_path: Path) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python")
    arguments = [sys.executable, "-m", "tests.fuzz", "budget", "--runs", "200", "--seed", "3"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["inputs"] == 200
