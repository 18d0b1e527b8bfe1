from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from autocompress.config import compose_settings
from autocompress.device import Device
from autocompress.workspace import _identity

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
