from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from autocompress import LayerPolicy
from autocompress.choices.space import SearchSpace
from autocompress.config import compose_settings
from autocompress.measuring.device import Device
from autocompress.probing.findings import Case, Finding, Findings
from autocompress.workspace import _identity, _part

if TYPE_CHECKING:
    from tests.conftest import Tiny


class Elsewhere:
    """A device of another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, str]:
        return {"device": self.name, "runtime": "1"}


def identity(tiny: Tiny, device: str = "board", *overrides: str) -> list[str]:
    settings = dataclasses.replace(compose_settings(list(overrides), tiny.registry), folder=Path())
    return _identity(tiny.task, tiny.graph, cast(Device, Elsewhere(device)), settings)


@pytest.mark.parametrize(
    ("device", "override"),
    [
        ("server", ""),
        ("board", "quantizer=[int4]"),
        ("board", "observer=mse"),
        ("board", "timing.batch=4"),
        ("board", "budget.latency_percentile=95"),
    ],
)
def test_what_was_measured_elsewhere_or_otherwise_is_not_taken_over(tiny: Tiny, device: str, override: str) -> None:
    assert identity(tiny, device, *([override] if override else [])) != identity(tiny)


@pytest.mark.parametrize(
    "override",
    ["search.seed=3", "search.trials=7", "timing.seconds=3", "budget.size_ratio=0.3", "objective=size", "sampler=tpe"],
)
def test_another_goal_or_effort_uses_what_was_measured(tiny: Tiny, override: str) -> None:
    assert identity(tiny, "board", override) == identity(tiny)


SPACE = SearchSpace({"stem.0": (LayerPolicy(), LayerPolicy("int8", 8), LayerPolicy("int4", 4))}, {})
ROWS = tuple(
    Finding("layer", "conv2d", "static", name, int(name[-1]), (Case(0.5, 0.498, 0.502, 0.3),))
    for name in ("int8", "int4", "codebook4")
)


@pytest.mark.parametrize(("searched", "left"), [(None, 2), ("part", 2), ("whole", 3)])
def test_a_folder_that_was_searched_with_more_stays_so(tiny: Tiny, tmp_path: Path, searched: str | None, left: int) -> None:
    """The trials there answer for another goal, and a search that resumes keeps its space."""
    settings = dataclasses.replace(compose_settings(["objective=latency"], tiny.registry), folder=tmp_path)
    findings = Findings("k", "cpu", "r", ROWS)
    part, notes = _part(SPACE, tiny.graph, findings, set(), settings)
    assert (len(part.layers["stem.0"]), len(notes)) == (2, 1)
    spaces = {"whole": {SPACE.digest}, "part": {SPACE.digest, part.digest}}.get(searched or "", set())
    found, _ = _part(SPACE, tiny.graph, findings, spaces, settings)
    assert len(found.layers["stem.0"]) == left
