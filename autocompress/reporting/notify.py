"""Tells plugins what happens. A tracker that fails is reported once per kind of failure; it never ends a search."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pluggy

from autocompress.components import Tracker
from autocompress.errors import AutocompressError
from autocompress.guarding.masking import masked
from autocompress.guarding.plugin_call import one_process
from autocompress.guarding.time_limit import TimeUpError, too_long, within

TRIAL_FINISHED = "autocompress_trial_finished"
"""The hook that has a time limit: at the start and the end there may be a thousand trials to catch up with."""


class TrackerWarning(AutocompressError, UserWarning):
    """A plugin that listens to the search raised; what it should have stored is stored at the next start."""


class Notifier:
    """Calls the hooks of a run, each plugin by itself.

    Args:
        trial_timeout: seconds that each may take for one trial; None: no limit.
    """

    def __init__(
        self, manager: pluggy.PluginManager, trackers: tuple[Tracker, ...], trial_timeout: float | None = None
    ) -> None:
        self._manager, self._trackers, self._trial_timeout = manager, trackers, trial_timeout

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
        answers, limit = [], self._trial_timeout if hook == TRIAL_FINISHED else None
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            given = {name: arguments[name] for name in implementation.argnames}
            try:
                with one_process():
                    answers.append(within(limit, partial(implementation.function, **given)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                why = too_long(limit, error) if isinstance(error, TimeUpError) else f"{type(error).__name__}: {error}"
                problem = masked(f"{implementation.plugin_name} failed in {hook}: {why}")
                warnings.warn(problem, TrackerWarning, stacklevel=2)
        return [answer for answer in answers if answer is not None]
