"""Calls into components: whatever one does, the core stays one process, and the error names the component."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress import components
from autocompress.components import Component
from autocompress.errors import AutocompressError, PluginError
from autocompress.guarding.time_limit import TimeUpError

Entry = TypeVar("Entry", bound=np.generic)


@contextmanager
def calling(component: Component, doing: str) -> Iterator[None]:
    """The body calls a component.

    Args:
        doing: what it is asked for, in a few words.

    Raises:
        PluginError: it raised anything, `SystemExit` included, but what is explained already or ended by the user.
    """
    with one_process():
        try:
            yield
        except (AutocompressError, KeyboardInterrupt, TimeUpError):
            raise
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}{_place(component, error)}"
            raise PluginError(f"{described(component)}: {doing}: {problem}") from error


@contextmanager
def one_process() -> Iterator[None]:
    """A child that the body forked and did not end ends here: it would go on as a second search on the same study."""
    here = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != here:
            os._exit(1)


def read_only(array: NDArray[Entry]) -> NDArray[Entry]:
    """The same memory, which cannot be written to this way: what a component is handed and others read as well."""
    view = array.view()
    view.flags.writeable = False
    return view


def described(component: Component) -> str:
    """Kind and name, for people."""
    kinds = [kind for kind in type(component).__mro__ if kind.__module__ == components.__name__]
    return f"{kinds[0].__name__.lower()} '{component.name}'"


def _place(component: Component, error: BaseException) -> str:
    """The innermost line of the component's own module."""
    file = getattr(sys.modules.get(type(component).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
