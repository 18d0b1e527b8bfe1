"""Whether a plugin implements hooks that exist, as they are; pluggy passes over what it does not know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from autocompress import hookspecs
from autocompress.errors import PluginError
from autocompress.suggestion import nearest

_MARK = f"{hookspecs.PROJECT}_impl"
"""Attribute that `@hookimpl` leaves on a function."""


def hooks() -> Mapping[str, Callable[..., Any]]:
    """Name to specification of every hook."""
    return {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")}


def check_hooks(plugin: object) -> None:
    """Make sure that a module, an object or a class implements nothing that would never be called.

    Raises:
        PluginError: a hook that does not exist or is not marked, or an argument that the hook does not have.
    """
    known = hooks()
    for name, member in inspect.getmembers_static(plugin):
        if not inspect.isfunction(member):
            continue
        mark = getattr(member, _MARK, None)
        if mark is None and name in known:
            raise PluginError(f"function {name} is not marked with @hookimpl, so it would never be called")
        if mark is not None and not mark["optionalhook"]:
            _check(mark["specname"] or name, member, known)


def _check(hook: str, implementation: Callable[..., Any], known: Mapping[str, Callable[..., Any]]) -> None:
    if hook not in known:
        raise PluginError(f"unknown hook '{hook}'{nearest(hook, known)} (hooks: {', '.join(known)})")
    parameters = inspect.signature(implementation).parameters.values()
    wanted = [parameter.name for parameter in parameters if parameter.default is parameter.empty and parameter.name != "self"]
    declared = list(inspect.signature(known[hook]).parameters)
    unknown = [name for name in wanted if name not in declared]
    if unknown:
        guess = nearest(unknown[0], declared)
        raise PluginError(f"hook {hook} has no argument '{unknown[0]}'{guess} (arguments: {', '.join(declared) or 'none'})")
