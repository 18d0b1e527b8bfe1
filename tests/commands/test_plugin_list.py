"""What a person reads of `autocompress plugins`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from autocompress.commands import plugin_list
from autocompress.commands.plugin_list import plugin_table
from autocompress.errors import ConfigError
from autocompress.registry import load_registry

Install = Callable[..., None]

SCALED = """
AUTOCOMPRESS_API = "1.0"
from dataclasses import field
from enum import Enum

class Norm(Enum):
    ONE = 1

@dataclass
class ScaledByAVeryLongName(Pruner):
    \"\"\"Larger weights stay.\"\"\"
    name = "scaled_by_a_very_long_name"
    path: str
    factors: list[int] = field(default_factory=lambda: [1, 2])
    norm: Norm = Norm.ONE
    signed: bool = False
    seed: int | None = None
    text: str = ""

    def score(self, weight, stats):
        return weight

@hookimpl
def autocompress_pruners():
    return [ScaledByAVeryLongName]
"""
LONG = "scaled_by_a_very_long_name"


def test_columns_line_up_whatever_the_names(install: Install) -> None:
    install("stranger", mine=SCALED)
    lines = plugin_table(load_registry()).splitlines()
    columns = [lines[0].index(heading) for heading in ("NAME", "FROM", "SETTINGS")]
    rows = lines[1 : lines.index("")]
    assert len(rows) == len(load_registry().components)
    for row in rows:
        for column in columns:
            assert row[column - 2 : column].strip() == "" and row[column : column + 1] != " ", row


def test_settings_are_written_as_on_the_command_line(install: Install) -> None:
    install("stranger", mine=SCALED)
    (line,) = (line for line in plugin_table(load_registry()).splitlines() if LONG in line)
    settings = "path=??? factors=[1,2] norm=ONE signed=false seed=null text=''"
    assert re.split("  +", line) == ["pruner", LONG, "stranger 1.2", settings]


def test_lines_fit_the_terminal() -> None:
    lines = plugin_table(load_registry(), width=100).splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 100
    assert "flip=" in " ".join(table)  # of finetune, whose settings take several lines


def test_versions_and_what_is_not_in_use_stand_at_the_end(install: Install) -> None:
    install("stranger", mine=SCALED, other="import nowhere_at_all")
    end = plugin_table(load_registry()).splitlines()[-3:]
    assert end[0].startswith("Plugin API 1.0.")
    assert end[1] == "mine of stranger 1.2 was written for API 1.0."
    assert end[2] == "Not in use: other of stranger 1.2: ModuleNotFoundError: No module named 'nowhere_at_all'"


@pytest.mark.parametrize("name", [LONG, "mine", "stranger"])
def test_one_component_is_explained(install: Install, capsys: pytest.CaptureFixture[str], name: str) -> None:
    install("stranger", mine=SCALED)
    assert plugin_list.main([name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"pruner={LONG}   from mine of stranger 1.2\n\nLarger weights stay.\n")
    assert f"pruner.{LONG}.norm=ONE" in shown


def test_a_name_that_is_not_there_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no component, plugin or distribution 'gptqq'; did you mean 'gptq'"):
        plugin_list.main(["gptqq"])


def test_a_plugin_that_did_not_load_says_why(install: Install) -> None:
    install("stranger", mine="import nowhere_at_all")
    with pytest.raises(ConfigError, match=r"plugin mine of stranger 1.2 is not in use: ModuleNotFoundError"):
        plugin_list.main(["--check", "mine"])


def test_a_check_is_of_something() -> None:
    with pytest.raises(ConfigError, match="say of which component"):
        plugin_list.main(["--check"])
