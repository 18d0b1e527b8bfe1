"""Tracker `mlflow`: one run for the study, below it one run for each trial, whatever its end.

Only `MlflowClient` is used, never MLflow's global state, so that a user's own active run is left alone. Optuna's storage is the
truth: what MLflow lacks or holds half, because a search was killed or a server was away, is mended at the next opportunity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from autocompress import Tracker, TrialRecord, hookimpl, masked
from autocompress.errors import StorageError
from autocompress_plugins.mlflow_tracker.reach import reached
from autocompress_plugins.mlflow_tracker.server import Outage, answers, impatience, is_away
from autocompress_plugins.mlflow_tracker.store import open_store
from autocompress_plugins.mlflow_tracker.tree import RunTree, open_tree

if TYPE_CHECKING:
    from autocompress import SearchResult, StudyContext

_EXPERIMENT_CHARACTERS = 500
_TRIAL_SECONDS, _END_SECONDS = 10.0, 60.0
"""A request may take so long while a search waits for it, and when it has ended (the delivered file may be large)."""


@final
@dataclass
class MlflowTracker(Tracker):
    """Tracks a study in MLflow, by default in a SQLite file.

    Attributes:
        root: folder of `mlflow.db` and of the artifacts; empty: `mlflow` beside the study's folder.
        uri: a server or database to use instead of the file in `root`. What a server misses while it is away it gets when it is
            back, or by `autocompress sync`.
        experiment: empty: the model, the target and the device, whose figures can be compared with each other.
        registered_model: name in the model registry, whose alias `champion` is the delivered file; empty: the model's and the
            target's.
    """

    name: ClassVar[str] = "mlflow"
    root: str = ""
    uri: str = ""
    experiment: str = ""
    registered_model: str = ""

    def __post_init__(self) -> None:
        # Not fields: fields are settings.
        self._study: StudyContext | None = None
        self._records: list[TrialRecord] = []
        self._tree: RunTree | None = None
        self._outage = Outage()

    @hookimpl
    def autocompress_search_started(self, study: StudyContext, records: Sequence[TrialRecord]) -> None:
        """Open the study's run, new or again, and bring its children in line with the records."""
        self._study, self._records, self._outage = study, list(records), Outage()
        self._tree = None  # if opening fails, nothing may reach the run of an earlier study
        self._tell(lambda _: None, _TRIAL_SECONDS)

    @hookimpl
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        """Add the trial's run."""
        self._records.append(record)
        if self._outage.is_due:
            self._tell(lambda tree: tree.add(record), _TRIAL_SECONDS)

    @hookimpl
    def autocompress_search_finished(self, result: SearchResult) -> str:
        """Add the delivered file's run, write the answer on the study's run, and tell where to look."""
        self._outage.end()  # told again, since nobody may have seen it
        tree = self._tell(lambda tree: tree.finish(result), _END_SECONDS)
        return f"MLflow: {tree.address}" if tree else ""

    def _tell(self, say: Callable[[RunTree], None], seconds: float) -> RunTree | None:
        """Say something to the study's tree, which is opened first if need be.

        Returns:
            The tree; None: the server is still away.

        Raises:
            StorageError: the server is away, since now.
        """
        start = time.monotonic()
        if self._tree is None and not answers(self.uri):
            self._away(time.monotonic() - start)
            return None
        try:
            with impatience(seconds):
                self._tree = self._tree or self._opened()
                say(self._tree)
        except Exception:
            if not is_away(self.uri, time.monotonic() - start):
                raise
            self._away(time.monotonic() - start)
            return None
        self._outage.end()
        return self._tree

    def reach(self, folder: Path) -> str:
        """The server, if it answers, or the database, if it can be written."""
        return reached(Path(self.root) if self.root else folder.parent / "mlflow", self.uri)

    def _opened(self) -> RunTree:
        """The tree with all that was told so far."""
        study = self._study
        if study is None:
            raise RuntimeError("tracker mlflow: a trial or a result was told before the search's start")
        store = open_store(Path(self.root) if self.root else study.folder.parent / "mlflow", self.uri)
        experiment = self.experiment or f"{study.model} on {study.target}, {study.device}"
        registered_model = self.registered_model or f"{study.model}-{study.target}"
        tree = open_tree(store, experiment[:_EXPERIMENT_CHARACTERS], study, registered_model)
        tree.reconcile(self._records)
        return tree

    def _away(self, seconds: float) -> None:
        self._tree = None  # what the server has of the last request is not known
        is_known = self._outage.is_on
        self._outage.begin(seconds)
        if not is_known and self._study is not None:
            raise StorageError(
                f"tracking.mlflow.uri={masked(self.uri)} does not answer; the study keeps what it misses, and "
                f"it gets that when it is back, at the latest by: autocompress sync {self._study.folder}"
            )


@hookimpl
def autocompress_trackers() -> list[type[Tracker]]:
    """The tracker of this package."""
    return [MlflowTracker]
