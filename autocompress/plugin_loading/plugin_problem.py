"""Why a plugin could not be loaded, in a sentence for the person who installed it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from types import ModuleType

import autocompress
from autocompress.errors import AutocompressError
from autocompress.plugin_loading.plugin_api import DECLARATION, this_api
from autocompress.suggestion import nearest


def plugin_problem(error: BaseException, declared: str | None) -> str:
    """What went wrong; for a name that is not here (any more) also the nearest one, and both versions of the plugin API."""
    if isinstance(error, AutocompressError):
        return str(error)
    missing = _missing(error)
    if missing is None:
        return " ".join(f"{type(error).__name__}: {error}".split())
    module, name, known = missing
    written = f"the plugin was written for API {declared}" if declared else f"the plugin declares no {DECLARATION}"
    return f"uses {module}.{name}, which does not exist{nearest(name, known)}; {written}, {this_api()}"


def _missing(error: BaseException) -> tuple[str, str, Sequence[str]] | None:
    """Module of ours, the name that it lacks, and those that it has; None: the error is about something else."""
    if isinstance(error, ModuleNotFoundError) and error.name and _is_ours(error.name):
        modules = [info.name for info in pkgutil.iter_modules(autocompress.__path__)]
        return autocompress.__name__, error.name.partition(".")[2], modules
    if isinstance(error, ImportError) and _is_ours(error.name):
        found = re.search(r"cannot import name '(\w+)'", str(error))  # `name_from` came with Python 3.12
        return (str(error.name), found[1], _names(str(error.name))) if found else None
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType) and _is_ours(error.obj.__name__):
        return error.obj.__name__, str(error.name), _names(error.obj.__name__)
    return None


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == autocompress.__name__


def _names(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
