"""Tells plugins what happens. A tracker that fails is reported once per kind of failure; it never ends a search."""

from __future__ import annotations

import warnings
from typing import Any

import pluggy

from autocompress.components import Tracker
from autocompress.errors import AutocompressError
from autocompress.masking import masked


class TrackerWarning(AutocompressError, UserWarning):
    """A plugin that listens to the search raised; what it should have stored is stored at the next start."""


class Notifier:
    """Calls the hooks of a run, each plugin by itself."""

    def __init__(self, manager: pluggy.PluginManager, trackers: tuple[Tracker, ...]) -> None:
        self._manager, self._trackers = manager, trackers

    def __enter__(self) -> Notifier:
        for tracker in self._trackers:
            self._manager.register(tracker, name=f"tracker:{tracker.name}")
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            self._manager.unregister(tracker)

    def __call__(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook in every plugin that implements it, the latest registered first, as pluggy does; returns the answers.

        Not through `HookCaller`, which stops at the first plugin that raises and wants hashable plugins (dataclasses are not).
        """
        answers = []
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                answers.append(implementation.function(**{name: arguments[name] for name in implementation.argnames}))
            except Exception as error:
                problem = masked(f"{implementation.plugin_name} failed in {hook}: {type(error).__name__}: {error}")
                warnings.warn(problem, TrackerWarning, stacklevel=2)
        return [answer for answer in answers if answer is not None]
