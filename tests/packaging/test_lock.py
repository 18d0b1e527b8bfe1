"""The locked versions are those that pyproject.toml allows, all of them, each with its hash and from nowhere in particular."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements/test.txt").read_text()
ENTRIES = [entry for entry in re.split(r"(?<!\\)\n", LOCK) if entry and not entry.startswith("#")]
"""One for each version, with its hashes."""

PYTHONS = ("3.11", "3.12", "3.13")


def environment(python: str) -> Environment:
    """Of that Python on this machine."""
    return {**default_environment(), "python_version": python, "python_full_version": f"{python}.9"}


def locked(python: str) -> dict[str, Version]:
    """Name to version."""
    found = [Requirement(entry.partition(" \\\n")[0]) for entry in ENTRIES]
    wanted = [one for one in found if one.marker is None or one.marker.evaluate(environment(python))]
    versions = {canonicalize_name(one.name): Version(str(one.specifier).removeprefix("==")) for one in wanted}
    assert len(versions) == len(wanted), "one version of each"
    return versions


def asked(extra: str | None = None) -> list[Requirement]:
    """What pyproject.toml names, with the extras of ours that it names replaced by what they name."""
    words = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = [Requirement(word) for word in words]
    inner = [one for other in found if other.name == PROJECT["name"] for name in other.extras for one in asked(name)]
    return [*(one for one in found if one.name != PROJECT["name"]), *inner]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_is_locked_within_its_bounds(python: str) -> None:
    versions, needed = locked(python), [*asked(), *asked("test")]
    assert len(needed) > 40
    outside = [str(one) for one in needed if versions.get(canonicalize_name(one.name)) not in one.specifier]
    assert outside == [], "run: make lock"


def test_what_they_need_is_locked_too() -> None:
    versions = locked(default_environment()["python_version"])
    missing = {f"{name} (of {owner})" for owner, name in closure(versions) if name not in versions}
    assert missing == set(), "run: make lock"


def closure(names: dict[str, Version]) -> Iterator[tuple[str, str]]:
    """What each locked package that is installed here needs, by what its metadata say."""
    for owner in names:
        try:
            needs = importlib.metadata.requires(owner) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for one in map(Requirement, needs):
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                yield owner, canonicalize_name(one.name)


def test_each_file_has_its_hash_and_none_its_place() -> None:
    assert len(ENTRIES) > 100
    assert [entry for entry in ENTRIES if not re.search(r"\\\n    --hash=sha256:[0-9a-f]{64}", entry)] == []
    assert re.findall(r"^.*(?:https?:|file:| @ |--index|--find|--extra-index|--trusted).*$", LOCK, re.MULTILINE) == []


def test_what_a_search_needs_has_an_upper_bound() -> None:
    extras = (one for extra in PROJECT["optional-dependencies"] if extra not in ("test", "docs") for one in asked(extra))
    open_ended = [str(one) for one in (*asked(), *extras) if not {"<", "=="} & {bound.operator for bound in one.specifier}]
    assert open_ended == []
