"""Loads plugins and finds their components. One bad plugin is reported and skipped; it never stops the program."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

import pluggy
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autocompress import hookspecs
from autocompress.components import Component, Metric, Observer, Pruner, Quantizer, Recovery, Sampler, Target, Tracker
from autocompress.errors import ConfigError, PluginError, UnknownComponentError
from autocompress.plugin_loading.hook_check import check_hooks
from autocompress.plugin_loading.plugin_api import check_api, declared_api
from autocompress.plugin_loading.plugin_problem import plugin_problem

DISABLED = "AUTOCOMPRESS_DISABLED_PLUGINS"

KINDS: dict[str, type[Component]] = {
    "quantizer": Quantizer,
    "pruner": Pruner,
    "recover": Recovery,
    "observer": Observer,
    "metric": Metric,
    "target": Target,
    "sampler": Sampler,
    "tracking": Tracker,
}
"""Config group to the base class of its components."""

_HOOKS = {kind: f"autocompress_{kind}s" for kind in KINDS} | {
    "tracking": "autocompress_trackers",
    "recover": "autocompress_recoveries",
}


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes:
        distribution, version: of what declares it.
        problem: why it is not in use; None: it is.
        api: the plugin API that it was written for; None: it does not say.
    """

    name: str
    distribution: str
    version: str
    problem: str | None = None
    api: str | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.distribution} {self.version}"


@dataclass(frozen=True)
class Registered:
    """One component class and the plugin that brought it."""

    kind: str
    name: str
    component: type[Component]
    plugin: Plugin


@dataclass
class Registry:
    """Components by kind and name, and what happened to each plugin."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    components: dict[tuple[str, str], Registered] = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Names of the components of a kind, sorted."""
        return sorted(name for registered, name in self.components if registered == kind)

    def component(self, kind: str, name: str) -> type[Component]:
        """The class that a plugin registered.

        Raises:
            UnknownComponentError: no plugin in use registers it.
        """
        try:
            return self.components[kind, name].component
        except KeyError:
            raise self.unknown(kind, name) from None

    def unknown(self, kind: str, name: str) -> UnknownComponentError:
        """The error that says what there is instead, and what could not be loaded."""
        problems = [f"{plugin}: {plugin.problem}" for plugin in self.plugins if plugin.problem]
        return UnknownComponentError(kind, name, self.names(kind), problems)

    def create(self, kind: str, name: str, settings: Mapping[str, Any]) -> Any:
        """A component with settings for some of its fields.

        Raises:
            UnknownComponentError: no plugin in use registers it.
            ConfigError: these are no settings, or it has no such field, or one of another type.
        """
        component = self.component(kind, name)
        known = sorted(entry.name for entry in dataclasses.fields(cast(Any, component)))
        options = f"options: {', '.join(known) or 'none'}"
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{kind}.{name}={settings}: expected a mapping; {options}")
        if unknown := sorted(set(settings) - {*known}):
            raise ConfigError(f"{kind}.{name}: no option '{unknown[0]}'; {options}")
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(component), dict(settings)))
        except OmegaConfBaseException as error:
            raise ConfigError(wrong_value(error, f"{kind}.{name}.")) from error

    def versions(self) -> dict[str, str]:
        """Distribution to version, for the plugins in use."""
        return {plugin.distribution: plugin.version for plugin in self.plugins if plugin.problem is None}


def wrong_value(error: OmegaConfBaseException, section: str = "") -> str:
    """OmegaConf's refusal of a value, with the key and without its own words for types.

    Args:
        section: what stands before the key that it names.
    """
    problem = str(error).partition("\n")[0].rstrip(".")
    if "not a ListConfig" in problem:
        problem = "expected a list, for example [VALUE,VALUE]"
    return f"{(section + (error.full_key or '')).rstrip('.')}: {problem}"


def load_registry(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """Load every installed plugin (or the given entry points) into a fresh plugin manager."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(manager)
    found = importlib.metadata.entry_points(group=hookspecs.PROJECT) if entry_points is None else entry_points
    for entry_point in sorted(found, key=_bundled_first):
        registry.plugins.append(_load(registry, entry_point))
    return registry


def _bundled_first(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    """Ours before strangers', so that a clash of names never takes away a documented component."""
    distribution = _distribution(entry_point)[0]
    return (distribution != hookspecs.PROJECT, distribution, entry_point.name)


def _distribution(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version; damaged metadata has none."""
    try:
        dist = entry_point.dist
        return (_line(dist.name), _line(dist.version)) if dist else ("unknown", "unknown")
    except (ValueError, LookupError, TypeError, AttributeError):
        return "unknown", "unknown"


def _line(text: str | None) -> str:
    return " ".join((text or "unknown").split())


def _load(registry: Registry, entry_point: importlib.metadata.EntryPoint) -> Plugin:
    plugin = Plugin(entry_point.name, *_distribution(entry_point))
    if entry_point.name in os.environ.get(DISABLED, "").replace(" ", "").split(","):
        return dataclasses.replace(plugin, problem=f"disabled by {DISABLED}")
    if registry.manager.has_plugin(entry_point.name):
        return dataclasses.replace(plugin, problem="another distribution registers a plugin of this name")
    try:
        plugin = dataclasses.replace(plugin, api=declared_api(entry_point))
        check_api(plugin.api, plugin.distribution)
        _register(registry, plugin, entry_point.load())
    except (Exception, SystemExit) as error:
        if registry.manager.has_plugin(plugin.name):
            registry.manager.unregister(name=plugin.name)
        return dataclasses.replace(plugin, problem=plugin_problem(error, plugin.api))
    return plugin


def _register(registry: Registry, plugin: Plugin, module: object) -> None:
    check_hooks(module)
    registry.manager.register(module, name=plugin.name)
    others = [other for other in registry.manager.get_plugins() if other is not module]
    found = [
        Registered(kind, component.name, component, plugin)
        for kind, hook in _HOOKS.items()
        for components in registry.manager.subset_hook_caller(hook, others)()
        for component in _checked(kind, components)
    ]
    fresh: dict[tuple[str, str], Registered] = {}
    for registered in found:
        key = (registered.kind, registered.name)
        if key in registry.components:
            owner = registry.components[key].plugin.distribution
            raise PluginError(f"{registered.kind} '{registered.name}' is already registered by {owner}")
        if key in fresh:
            raise PluginError(f"{registered.kind} '{registered.name}' is registered twice")
        fresh[key] = registered
    registry.components.update(fresh)


def _checked(kind: str, components: Iterable[type[Component]]) -> list[type[Component]]:
    checked = list(components)
    for component in checked:
        expected = KINDS[kind].__name__
        if not (isinstance(component, type) and issubclass(component, KINDS[kind])):
            raise PluginError(f"hook {_HOOKS[kind]} returned {component!r}; expected a subclass of {expected}")
        if not dataclasses.is_dataclass(component) or not isinstance(getattr(component, "name", None), str):
            raise PluginError(f"{kind} class {component.__name__} must be a dataclass with a class attribute `name: str`")
        abstract = sorted(getattr(component, "__abstractmethods__", ()))
        if abstract:
            close = get_close_matches(abstract[0], vars(component), n=1)
            remedy = f"; rename its '{close[0]}'" if close else ""
            raise PluginError(f"{kind} class {component.__name__} does not implement {', '.join(abstract)}{remedy}")
        check_hooks(component)
        _check_options(kind, component)
    return checked


def _check_options(kind: str, component: type[Component]) -> None:
    """Hydra has to take the fields, or every command would fail."""
    try:
        OmegaConf.structured(component)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        allowed = "bool, int, float, str, an Enum, a list, a dict or a dataclass of these, or one of them | None"
        raise PluginError(f"{kind}.{component.name}: {reason}; expected fields of type {allowed}") from error
