"""Where runs are kept: a SQLite file, or a server or database of the user's."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from autocompress import masked
from autocompress_plugins.mlflow_tracker import view

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves."""

_SHOW = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true mlflow ui --host 127.0.0.1"
"""The pages for this machine alone, without what MLflow also starts by default."""


@dataclass(frozen=True)
class Store:
    """A client, and where the artifacts of a new experiment go (None: the server decides)."""

    client: MlflowClient
    uri: str
    artifacts: str | None

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made or brought back from the deleted ones if need be."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            tags = {**view.kind_tag(), **view.view_tag()}
            return str(self.client.create_experiment(name, artifact_location=self.artifacts, tags=tags))
        experiment_id = str(found.experiment_id)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment_id)
        for key, value in view.view_tag().items():
            if key not in found.tags:  # an experiment of the user's
                self.client.set_experiment_tag(experiment_id, key, value)
        return experiment_id

    def address(self, experiment_id: str) -> str:
        """Where a person finds an experiment; of a database, the command that shows it."""
        uri = masked(self.uri)
        page = view.fragment(experiment_id)
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}"
        if uri.startswith("databricks"):
            return uri
        return f"{_SHOW} --backend-store-uri {shlex.quote(uri)} (then {_LOCAL_SERVER}/{page})"

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
        curves: Mapping[int, Mapping[str, float]] | None = None,
        after_ms: int = 0,
    ) -> None:
        """Everything about a run in one call, thirty times faster than one by one.

        Args:
            curves: step to metrics.
            after_ms: metrics are later than this, whatever the clock says: of a step MLflow shows the latest.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = max(int(time.time() * 1000), after_ms + 1)
        points = [(key, value, 0) for key, value in (metrics or {}).items()]
        points += [(key, value, step) for step, found in (curves or {}).items() for key, value in found.items()]
        self.client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, step, model_id=model_id) for key, value, step in points],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )


def open_store(root: Path, uri: str) -> Store:
    """Open what `uri` names; if it is empty, the file in `root`, which is made if there is none."""
    # Before the first import of mlflow, which reads them. It is imported late, because it takes longer than most commands.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):  # a line for each of dozens of migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    root = root.expanduser().resolve()
    if not uri:
        uri = _sqlite_uri(_ensure_database(root / "mlflow.db"))
    artifacts = None if uri.startswith("http") else (root / "artifacts").as_uri()
    return Store(MlflowClient(tracking_uri=uri), uri, artifacts)


def _sqlite_uri(path: Path) -> str:
    return f"sqlite:///{path}"


def _ensure_database(path: Path) -> Path:
    """Make the database if there is none.

    MLflow can never open a database again whose first migration was cut short (by Ctrl-C, for example), so it is made
    elsewhere and then put in place whole.
    """
    from mlflow import MlflowClient

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with TemporaryDirectory() as folder:
            MlflowClient(tracking_uri=_sqlite_uri(Path(folder, path.name))).search_experiments(max_results=1)
            shutil.copyfile(Path(folder, path.name), partial)
        if not path.exists():  # another search may have been faster
            partial.replace(path)
        partial.unlink(missing_ok=True)
    return path
