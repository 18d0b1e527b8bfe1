"""What a plugin says it was written for decides whether it is used, before any of its code runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autocompress import PLUGIN_API
from autocompress.errors import PluginError
from autocompress.plugin_loading import plugin_api
from autocompress.plugin_loading.plugin_api import check_api
from autocompress.registry import load_registry

GOOD = """
@dataclass
class KeepAll(Pruner):
    name = "keep_all"

    def score(self, weight, stats):
        return weight.abs() + 1

@hookimpl
def autocompress_pruners():
    return [KeepAll]
"""


@pytest.mark.parametrize("declared", [None, "3.0", "3.1", "3.2"])
def test_the_same_major_version_and_no_later_minor_one_fits(monkeypatch: pytest.MonkeyPatch, declared: str | None) -> None:
    monkeypatch.setattr(plugin_api, "PLUGIN_API", "3.2")
    check_api(declared, "stranger")


@pytest.mark.parametrize(
    ("declared", "remedy"),
    [
        ("3.3", "install an earlier stranger or a later autocompress"),
        ("4.0", "install an earlier stranger or a later autocompress"),
        ("2.9", "install a later stranger or an earlier autocompress"),
        ("3.10", "install an earlier stranger or a later autocompress"),
    ],
)
def test_others_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, declared: str, remedy: str) -> None:
    monkeypatch.setattr(plugin_api, "PLUGIN_API", "3.2")
    with pytest.raises(PluginError) as caught:
        check_api(declared, "stranger")
    expected = f"was written for plugin API {declared}; this is autocompress 0.1.0 with plugin API 3.2: {remedy}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("declared", ["", "1", "one", "1.0.0", ">=1.0"])
def test_what_is_no_version_is_refused(declared: str) -> None:
    with pytest.raises(PluginError, match=f'AUTOCOMPRESS_API = "{declared}" is no version; write for example'):
        check_api(declared, "stranger")


@pytest.mark.parametrize("line", ['AUTOCOMPRESS_API = "{}"', "AUTOCOMPRESS_API: Final = '{}'", 'AUTOCOMPRESS_API="{}"  # why'])
def test_the_declaration_is_read_from_the_source(install: Callable[..., None], line: str) -> None:
    install("stranger", mine=f"from typing import Final\n{line.format(PLUGIN_API)}\n{GOOD}")
    registry = load_registry()
    assert registry.components["pruner", "keep_all"].plugin.api == PLUGIN_API


def test_a_plugin_that_declares_nothing_is_used(install: Callable[..., None]) -> None:
    install("stranger", mine=GOOD)
    assert load_registry().components["pruner", "keep_all"].plugin.api is None
