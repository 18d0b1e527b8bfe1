"""Tracker `mlflow`: one run for the study, below it one run for each trial, whatever its end.

Only `MlflowClient` is used, never MLflow's global state, so that a user's own active run is left alone. Optuna's storage is the
truth: what MLflow lacks or holds half is mended when a search starts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from autocompress import Tracker, TrialRecord, hookimpl
from autocompress_plugins.mlflow_tracker.reach import reached
from autocompress_plugins.mlflow_tracker.store import open_store
from autocompress_plugins.mlflow_tracker.tree import RunTree, open_tree

if TYPE_CHECKING:
    from autocompress import SearchResult, StudyContext

_EXPERIMENT_CHARACTERS = 500


@final
@dataclass
class MlflowTracker(Tracker):
    """Tracks a study in MLflow, by default in a SQLite file.

    Attributes:
        root: folder of `mlflow.db` and of the artifacts; empty: `mlflow` beside the study's folder.
        uri: a server or database to use instead of the file in `root`.
        experiment: empty: the model, the target and the device, whose figures can be compared with each other.
    """

    name: ClassVar[str] = "mlflow"
    root: str = ""
    uri: str = ""
    experiment: str = ""

    def __post_init__(self) -> None:
        # Not a field: fields are settings.
        self._tree: RunTree | None = None

    @hookimpl
    def autocompress_search_started(self, study: StudyContext, records: Sequence[TrialRecord]) -> None:
        """Open the study's run, new or again, and bring its children in line with the records."""
        self._tree = None  # if opening fails, nothing may reach the run of an earlier study
        store = open_store(Path(self.root) if self.root else study.folder.parent / "mlflow", self.uri)
        experiment = self.experiment or f"{study.model} on {study.target}, {study.device}"
        tree = open_tree(store, experiment[:_EXPERIMENT_CHARACTERS], study)
        tree.reconcile(records)
        self._tree = tree

    @hookimpl
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        """Add the trial's run."""
        self._opened().add(record)

    @hookimpl
    def autocompress_search_finished(self, result: SearchResult) -> str:
        """Add the delivered file's run, write the answer on the study's run, and tell where to look."""
        tree = self._opened()
        tree.finish(result)
        return f"MLflow: {tree.address}"

    def reach(self, folder: Path) -> str:
        """The server, if it answers, or the database, if it can be written."""
        return reached(Path(self.root) if self.root else folder.parent / "mlflow", self.uri)

    def _opened(self) -> RunTree:
        if self._tree is None:
            raise RuntimeError("tracker mlflow: the study's run could not be opened when the search started")
        return self._tree


@hookimpl
def autocompress_trackers() -> list[type[Tracker]]:
    """The tracker of this package."""
    return [MlflowTracker]
