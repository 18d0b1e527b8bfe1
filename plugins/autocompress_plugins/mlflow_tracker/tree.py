"""The run of a study and its children."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from autocompress import Course, study_figures
from autocompress_plugins.mlflow_tracker import entries
from autocompress_plugins.mlflow_tracker.answer import limits, note
from autocompress_plugins.mlflow_tracker.data_sets import dataset_inputs
from autocompress_plugins.mlflow_tracker.figure_page import page
from autocompress_plugins.mlflow_tracker.model import log_model
from autocompress_plugins.mlflow_tracker.registration import is_registered, register, ships

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

    from autocompress import SearchResult, StudyContext, TrialRecord
    from autocompress_plugins.mlflow_tracker.store import Store

_POINT = "best/front_hypervolume"
"""The curve that has a point for each trial."""

_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def open_tree(store: Store, experiment: str, study: StudyContext, registered_model: str) -> RunTree:
    """The tree of a study: the one that it has, in whichever experiment, or a new one in the experiment of that name."""
    run = _find_study_run(store.client, study.id)
    if run is None:
        experiment_id = store.experiment_id(experiment)
        tags = {**entries.study_tags(study), "autocompress.kind": "study", "autocompress.key": study.id}
        # Looked for again, because a deleted experiment comes back with its runs.
        run = _find_study_run(store.client, study.id) or store.client.create_run(experiment_id, tags=tags, run_name=study.name)
    return RunTree(store, run, study, registered_model)


def _find_study_run(client: MlflowClient, key: str) -> Run | None:
    """The study's run in whichever experiment it was begun, so that another device does not begin it anew."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`autocompress.key` = '{key}'", max_results=1)
    return runs[0] if runs else None


class RunTree:
    """The run of a study and its children: at most one for each trial."""

    def __init__(self, store: Store, run: Run, study: StudyContext, registered_model: str) -> None:
        self._store, self._client, self._study = store, store.client, study
        self._registered_model = registered_model
        self._experiment_id, self._run_id = str(run.info.experiment_id), str(run.info.run_id)
        self._last_start_ms: int = run.info.start_time
        self._logged: set[str] = set()
        self._course, self._followed = Course(study), set[int]()
        self._points = {point.step for point in self._client.get_metric_history(self._run_id, _POINT)}
        self._champion = ""
        self._answer = run.data.tags.get("autocompress.answer", "")
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
        if data_sets := dataset_inputs(self._study):
            self._client.log_inputs(self._run_id, data_sets)
        self._client.update_run(self._run_id, status="RUNNING")

    def reconcile(self, records: Sequence[TrialRecord], answer: str = "") -> None:
        """Keep one finished child for each record and one for the delivered file, drop the others, add what is missing.

        Args:
            answer: of which the delivered file is kept (`entries.result_digest`); empty: of any.
        """
        by_key = {entries.key(record): record for record in [entries.baseline_record(self._study), *records]}
        self._logged = set()
        for child in self._children():
            if self._is_wanted(child, by_key, answer):
                self._logged.add(child.data.tags["autocompress.trial"])
                self._last_start_ms = max(self._last_start_ms, child.info.start_time)
                self._champion = child.data.tags.get("autocompress.champion", self._champion)
            else:
                self._drop(child)
        for record in by_key.values():
            self._add(record)
        self._follow(records)

    def _is_wanted(self, child: Run, keys: Container[str], answer: str) -> bool:
        key = child.data.tags.get("autocompress.trial", "")
        if child.info.status not in _STATUS.values() or key in self._logged:
            return False
        return key in keys or (key == entries.FINAL and answer in ("", child.data.tags.get("autocompress.answer")))

    def add(self, record: TrialRecord) -> None:
        """Add the run of a trial, if there is none, and a point to the curves of the study."""
        self._add(record)
        self._follow([record])

    def _follow(self, records: Sequence[TrialRecord]) -> None:
        """Add what the study has come to with these trials to its curves, the number of the trial as step, each once."""
        new = [record for record in records if record.number not in self._followed]
        self._followed.update(record.number for record in new)
        points = {record.number: entries.reached_metrics(self._course.add(record)) for record in new}
        missing = {step: point for step, point in points.items() if step not in self._points}
        if missing:
            self._store.log(self._run_id, curves=missing)
            self._points.update(missing)

    def _add(self, record: TrialRecord) -> None:
        if entries.key(record) not in self._logged:
            run_id = self._create(record, {})
            self._store.log(run_id, metrics=entries.metrics(record), params=entries.params(record))
            self._end(run_id, record)

    def finish(self, result: SearchResult) -> None:
        """Add the delivered file, write the answer on the study's run and end it."""
        answer = entries.result_digest(result)
        # What an interruption left is mended, and the file that an earlier search of this study delivered is dropped.
        self.reconcile(result.records, answer)
        if entries.FINAL not in self._logged:
            self._champion = self._deliver(result, answer)
        told = note(self._study, result, self._champion)
        self._store.log(self._run_id, tags=entries.result_tags(result, told, self._champion))
        if self._answer != answer:
            self._log_files_of(result)
            # Last: it says that all of this is there.
            metrics, tags = entries.result_metrics(result), {"autocompress.answer": answer}
            self._store.log(self._run_id, metrics=metrics, tags=tags, after_ms=self._last_answer_ms())
            self._answer = answer
        self._client.set_terminated(self._run_id, "KILLED" if result.status == "interrupted" else "FINISHED")

    def _last_answer_ms(self) -> int:
        """When an earlier answer was told, by the clock of then; 0: never."""
        told = self._client.get_metric_history(self._run_id, entries.SEARCH_SECONDS)
        return max((point.timestamp for point in told), default=0)

    def _deliver(self, result: SearchResult, answer: str) -> str:
        """Add the run of the delivered file; returns the version that it is registered as, `NAME/VERSION`, if it ships."""
        record = entries.final_record(result)
        tags = {**entries.study_tags(self._study), **entries.trial_tags(record), **entries.figure_tags(record)}
        run_id, params = self._create(record, {"autocompress.answer": answer}), entries.params(record)
        model_id = log_model(
            self._client,
            self._experiment_id,
            run_id,
            result.best.artifact.path,
            name=self._study.model,
            tags=tags,
            params=params,
            example=self._study.example,
        )
        self._store.log(run_id, metrics=entries.metrics(record), params=params, model_id=model_id)
        version = register(self._client, self._registered_model, model_id, tags) if ships(result) else ""
        if version:
            self._store.log(run_id, tags={"autocompress.champion": version})
        self._end(run_id, record)
        return version

    def _end(self, run_id: str, record: TrialRecord) -> None:
        """Last: a child that has ended is whole."""
        self._log_files(run_id, record)
        self._client.set_terminated(run_id, _STATUS[record.state])
        self._logged.add(entries.key(record))

    def _log_files_of(self, result: SearchResult) -> None:
        self._log_figures(result)
        for name in ("result.json", "report.html"):
            self._log_file(result.folder / name)
        if result.best_trial is not None:
            self._log_file(result.folder / "best" / "policy.yaml", "best")

    def _log_figures(self, result: SearchResult) -> None:
        """All of them as one page that needs no network (Plotly's script is in it once), and each as a picture."""
        figures = study_figures(self._study, result)
        with TemporaryDirectory() as folder:
            Path(folder, "figures.html").write_text(page(self._study.name, figures), encoding="utf-8")
            for name, figure in figures.items():
                figure.png(Path(folder, f"{name}.png"))
            self._client.log_artifacts(self._run_id, folder, "figures")

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
        """Delete a child and its model; first ended, since a deleted run keeps its status. What is registered stays."""
        if child.info.status not in _STATUS.values():
            self._client.set_terminated(child.info.run_id, "KILLED")
        if not is_registered(self._client, child.info.run_id):
            for model in self._client.search_logged_models([self._experiment_id], f"source_run_id = '{child.info.run_id}'"):
                self._client.delete_logged_model(model.model_id)
        self._client.delete_run(child.info.run_id)

    def _create(self, record: TrialRecord, tags: Mapping[str, str]) -> str:
        # Started when the trial was, so that MLflow's column of durations shows what a trial took; in the order of the trials.
        began = int(1000 * (time.time() - sum(record.seconds.values())))
        self._last_start_ms = max(began, self._last_start_ms + 1)
        own = {"mlflow.parentRunId": self._run_id, **entries.study_tags(self._study), **entries.trial_tags(record), **tags}
        name = entries.run_name(record, self._study.quality)
        return str(self._client.create_run(self._experiment_id, self._last_start_ms, own, name).info.run_id)

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
