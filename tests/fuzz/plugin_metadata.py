"""Installed plugins: their metadata, entry points, declared API, hooks and components."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from autocompress import hookimpl
from autocompress.components import Pruner
from autocompress.registry import load_registry
from tests.fuzz.mutation import mutated_json
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

MODULE = "autocompress_fuzzed_plugin"


class Fuzzed(importlib.metadata.Distribution):
    """An installed distribution with any metadata."""

    def __init__(self, metadata: str, entry_points: str) -> None:
        self._texts = {"METADATA": metadata, "entry_points.txt": entry_points}

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return scratch_folder() / path


def read(data: bytes) -> None:
    """Keys: the metadata, the entry points, the module's source, what its hooks return and what its component is."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        return
    given = {**PLUGIN, **given}
    distribution = Fuzzed(_text(given["metadata"]), _text(given["entry_points"]))
    _install(given)
    try:
        points = list(distribution.entry_points)
    except (ValueError, TypeError, LookupError, AttributeError):  # importlib.metadata reads every distribution itself
        points = []
    more = importlib.metadata.EntryPoint(" ".join(_text(given["name"]).split()), _text(given["value"]), "autocompress")._for(
        distribution
    )  # type: ignore[attr-defined]
    registry = load_registry([*points, more])
    for registered in registry.components.values():
        OmegaConf.structured(registered.component)
    for plugin in registry.plugins:
        assert str(plugin) and "\n" not in f"{plugin}: {plugin.problem}"
    registry.versions()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _install(given: dict[str, Any]) -> None:
    path = scratch_file(f"{MODULE}.py", _text(given["source"]).encode(errors="replace"))
    module = ModuleType(MODULE)
    module.__spec__ = importlib.machinery.ModuleSpec(MODULE, None, origin=str(path))
    members = given["members"] if isinstance(given["members"], dict) else {}
    for name, value in members.items():
        setattr(module, name, _member(name, value, given["component"]))
    sys.modules[MODULE] = module


def _member(name: str, value: object, component: object) -> object:
    """A hook that returns the value, or the component where the value says so; `plain` functions are not marked."""
    if value == "plain":
        return lambda: []

    def hook() -> object:
        return [_component(component)] if value == "component" else value

    hook.__name__ = name
    return hookimpl(hook)


def _component(described: object) -> object:
    if not isinstance(described, dict):
        return described
    fields = {str(key): value for key, value in described.items()}
    made: Callable[..., Any] = type
    bases = () if fields.pop("stranger", False) else (Pruner,)
    kind = made("Made", bases, {"score": lambda self, weight, stats: weight, **fields, "__annotations__": _types(fields)})
    return kind if fields.get("bare") else dataclass(kind)


def _types(fields: dict[str, Any]) -> dict[str, object]:
    return {name: type(value) for name, value in fields.items() if name not in ("name", "bare") and not name.startswith("__")}


PLUGIN: dict[str, Any] = {
    "metadata": "Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n",
    "entry_points": f"[autocompress]\nother = {MODULE}\n",
    "name": "mine",
    "value": MODULE,
    "source": 'AUTOCOMPRESS_API = "1.0"\n',
    "members": {"autocompress_pruners": "component", "helper": "plain"},
    "component": {"name": "keep_all", "share": 0.5, "listed": "x"},
}
SEEDS = [
    PLUGIN,
    {**PLUGIN, "source": 'AUTOCOMPRESS_API: str = "9.9"'},
    {**PLUGIN, "members": {"autocompress_pruner": "component"}},
    {**PLUGIN, "members": {"autocompress_pruners": "plain", "autocompress_trackers": []}},
    {**PLUGIN, "component": {"stranger": True, "name": "x"}},
    {**PLUGIN, "metadata": "Version: 1\n", "value": f"{MODULE}:missing.attribute [extra]"},
]
PLUGINS = Target([json.dumps(seed).encode() for seed in SEEDS], read, mutated_json, runs=20_000)
