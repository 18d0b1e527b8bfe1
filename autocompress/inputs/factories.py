"""Calls a user's own function by its written name, `module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from autocompress.errors import ConfigError
from autocompress.suggestion import nearest


def call_factory(setting: str, written: str, arguments: Mapping[str, Any]) -> Any:
    """What `written` ('module:function') returns for the keyword arguments.

    Args:
        setting: where it was written, for example 'model.factory'; begins every message.

    Raises:
        ConfigError: it cannot be imported, or does not accept the arguments.
            Errors inside the function itself pass through.
    """
    factory = load_function(setting, written)
    _check_arguments(setting, written, factory, arguments)
    return factory(**arguments)


def load_function(setting: str, written: str) -> Callable[..., Any]:
    """The function that `written` ('module:function') names.

    Args:
        setting: where it was written, for example 'metric.function.path'; begins every message.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module_name, _, name = written.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{setting}: '{written}' is not a function's address; expected 'module:function'")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{setting}: cannot import '{module_name}' of '{written}': {error}; is it installed?") from None
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ConfigError(f"{setting}: module '{module_name}' has no function '{name}'{nearest(name, dir(module))}")
    return factory  # type: ignore[no-any-return]  # callable() cannot tell a signature


def _check_arguments(setting: str, written: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Bind first, so that a TypeError from inside the function is never mistaken for a wrong argument."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"{setting}: {written} cannot take kwargs {dict(arguments)}: {error}; it accepts: {accepted}"
        ) from None
