"""The run of a study and its children."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from autocompress_plugins.mlflow_tracker import entries
from autocompress_plugins.mlflow_tracker.answer import limits, note
from autocompress_plugins.mlflow_tracker.model import log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

    from autocompress import SearchResult, StudyContext, TrialRecord
    from autocompress_plugins.mlflow_tracker.store import Store

_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def open_tree(store: Store, experiment: str, study: StudyContext) -> RunTree:
    """The tree of a study: the one that it has, in whichever experiment, or a new one in the experiment of that name."""
    run = _find_study_run(store.client, study.id)
    if run is None:
        experiment_id = store.experiment_id(experiment)
        tags = {**entries.study_tags(study), "autocompress.kind": "study", "autocompress.key": study.id}
        # Looked for again, because a deleted experiment comes back with its runs.
        run = _find_study_run(store.client, study.id) or store.client.create_run(experiment_id, tags=tags, run_name=study.name)
    return RunTree(store, run, study)


def _find_study_run(client: MlflowClient, key: str) -> Run | None:
    """The study's run in whichever experiment it was begun, so that another device does not begin it anew."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`autocompress.key` = '{key}'", max_results=1)
    return runs[0] if runs else None


class RunTree:
    """The run of a study and its children: at most one for each trial."""

    def __init__(self, store: Store, run: Run, study: StudyContext) -> None:
        self._store, self._client, self._study = store, store.client, study
        self._quality = study.quality
        self._experiment_id, self._run_id = str(run.info.experiment_id), str(run.info.run_id)
        self._last_start_ms: int = run.info.start_time
        self._logged: set[str] = set()
        self._begin(run)

    @property
    def address(self) -> str:
        """Where a person finds the tree."""
        return self._store.address(self._experiment_id)

    def _begin(self, run: Run) -> None:
        # Params cannot be changed, and a run from an earlier search has them unless it was cut short.
        params = {key: value for key, value in entries.study_params(self._study).items() if key not in run.data.params}
        content = f"Searching. {limits(self._study.budget)}.\n"
        self._store.log(self._run_id, params=params, tags={**entries.study_tags(self._study), "mlflow.note.content": content})
        if self._study.config:
            self._client.log_text(self._run_id, json.dumps(self._study.config, indent=2, default=str), "config.json")
        self._client.update_run(self._run_id, status="RUNNING")

    def reconcile(self, records: Sequence[TrialRecord], also: Collection[str] = (entries.FINAL,)) -> None:
        """Keep one finished child for each record (and those named), drop the others, add what is missing."""
        by_key = {entries.key(record): record for record in [entries.baseline_record(self._study), *records]}
        self._logged = set()
        for child in self._children():
            key = child.data.tags.get("autocompress.trial", "")
            if child.info.status in _STATUS.values() and key in {*by_key, *also} - self._logged:
                self._logged.add(key)
                self._last_start_ms = max(self._last_start_ms, child.info.start_time)
            else:
                self._drop(child)
        for record in by_key.values():
            self.add(record)

    def add(self, record: TrialRecord, model: Path | None = None) -> None:
        """Add the run of a trial, if there is none."""
        key = entries.key(record)
        if key in self._logged:
            return
        run_id = self._create(record)
        model_id = self._log_model(run_id, record, model) if model else None
        self._store.log(run_id, metrics=entries.metrics(record), params=entries.params(record), model_id=model_id)
        self._log_files(run_id, record)
        # Last: a child that has ended is whole.
        self._client.set_terminated(run_id, _STATUS[record.state])
        self._logged.add(key)

    def finish(self, result: SearchResult) -> None:
        """Add the delivered file, write the answer on the study's run and end it."""
        # What an interruption left is mended, and the file that an earlier search of this study delivered is dropped.
        self.reconcile(result.records, also=())
        self.add(entries.final_record(result), model=result.best.artifact.path)
        tags = entries.result_tags(result, note(self._study, result, self._quality))
        self._store.log(self._run_id, metrics=entries.result_metrics(result), tags=tags)
        self._log_file(result.folder / "result.json")
        if result.best_trial is not None:
            self._log_file(result.folder / "best" / "policy.yaml", "best")
        self._client.set_terminated(self._run_id, "KILLED" if result.status == "interrupted" else "FINISHED")

    def _children(self) -> list[Run]:
        page = self._page(None)
        children = list(page)
        while page.token:
            page = self._page(page.token)
            children.extend(page)
        return children

    def _page(self, token: str | None) -> PagedList[Run]:
        condition = f"tags.`mlflow.parentRunId` = '{self._run_id}'"
        return self._client.search_runs([self._experiment_id], condition, order_by=["start_time"], page_token=token)

    def _drop(self, child: Run) -> None:
        """Delete a child and its model; first ended, since a deleted run keeps its status."""
        if child.info.status not in _STATUS.values():
            self._client.set_terminated(child.info.run_id, "KILLED")
        for model in self._client.search_logged_models([self._experiment_id], f"source_run_id = '{child.info.run_id}'"):
            self._client.delete_logged_model(model.model_id)
        self._client.delete_run(child.info.run_id)

    def _create(self, record: TrialRecord) -> str:
        # Started when the trial was, so that MLflow's column of durations shows what a trial took; in the order of the trials.
        began = int(1000 * (time.time() - sum(record.seconds.values())))
        self._last_start_ms = max(began, self._last_start_ms + 1)
        tags = {"mlflow.parentRunId": self._run_id, **entries.study_tags(self._study), **entries.trial_tags(record)}
        name = entries.run_name(record, self._quality)
        return str(self._client.create_run(self._experiment_id, self._last_start_ms, tags, name).info.run_id)

    def _log_model(self, run_id: str, record: TrialRecord, path: Path) -> str:
        tags = {**entries.study_tags(self._study), **entries.trial_tags(record), **entries.figure_tags(record)}
        return log_model(
            self._client, self._experiment_id, run_id, path, name=self._study.model, tags=tags, params=entries.params(record)
        )

    def _log_files(self, run_id: str, record: TrialRecord) -> None:
        """The policy and the per-layer table, in one call."""
        with TemporaryDirectory() as folder:
            Path(folder, "policy.json").write_text(json.dumps(record.policy.to_dict(), indent=2), encoding="utf-8")
            if record.layers:
                layers = json.dumps(entries.layer_table(record.layers))
                Path(folder, entries.LAYER_TABLE).write_text(layers, encoding="utf-8")
            self._client.log_artifacts(run_id, folder)

    def _log_file(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            self._client.log_artifact(self._run_id, str(path), folder)
