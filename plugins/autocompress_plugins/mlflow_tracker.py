"""Writes studies to MLflow: one run for the study, below it one run for each trial, whatever its end.

Only `MlflowClient` is used, never MLflow's global state, so that a user's own active run is left alone. Optuna's storage is the
truth: what MLflow lacks or holds half is mended when a search starts again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, final

from autocompress import Policy, Tracker, TrialRecord, hookimpl
from autocompress.policy import FLOAT_BITS
from autocompress.record import LayerRow
from autocompress.report import table

if TYPE_CHECKING:
    from types import ModuleType

    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature
    from mlflow.store.entities import PagedList
    from mlflow.types import Schema
    from onnx import ModelProto, TypeProto, ValueInfoProto

    from autocompress import Budget, SearchResult, StudyContext

_BASELINE, _FINAL = "baseline", "final"
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
_TAG_CHARACTERS = 5000
_EXPERIMENT_CHARACTERS = 500
_LAYER_TABLE = "layers.json"
_COLUMN_WIDTHS = {
    "attributes.`Run Name`": 300,
    "runDateAndNestInfo": 150,
    "duration": 80,
    "metrics.`quality/accuracy`": 130,
    "metrics.`latency/ratio`": 110,
    "metrics.`size/ratio`": 110,
    "metrics.`latency/median_ms`": 150,
    "metrics.`size/bytes`": 110,
    "tags.`autocompress.feasible`": 170,
    "tags.`autocompress.reason`": 300,
}


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
        self._tree: _RunTree | None = None

    @hookimpl
    def autocompress_search_started(self, study: StudyContext, records: Sequence[TrialRecord]) -> None:
        """Open the study's run, new or again, and bring its children in line with the records."""
        self._tree = None  # if opening fails, nothing may reach the run of an earlier study
        store = _open_store(Path(self.root) if self.root else study.folder.parent / "mlflow", self.uri)
        experiment = self.experiment or f"{study.model} on {study.target}, {study.device}"
        tree = _open_tree(store, experiment[:_EXPERIMENT_CHARACTERS], study)
        tree.reconcile(records)
        self._tree = tree

    @hookimpl
    def autocompress_trial_finished(self, record: TrialRecord) -> None:
        """Add the trial's run."""
        self._opened().add(record)

    @hookimpl
    def autocompress_search_finished(self, result: SearchResult) -> None:
        """Add the delivered file's run and write the answer on the study's run."""
        self._opened().finish(result)

    def _opened(self) -> _RunTree:
        if self._tree is None:
            raise RuntimeError("tracker mlflow: the study's run could not be opened when the search started")
        return self._tree


@hookimpl
def autocompress_trackers() -> list[type[Tracker]]:
    """The tracker of this module."""
    return [MlflowTracker]


# Where runs are kept.


@dataclass(frozen=True)
class _Store:
    """A client, and where the artifacts of a new experiment go (None: the server decides)."""

    client: MlflowClient
    artifacts: str | None


def _open_store(root: Path, uri: str) -> _Store:
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
    return _Store(MlflowClient(tracking_uri=uri), artifacts)


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


# The study's run and its children.


def _open_tree(store: _Store, experiment: str, study: StudyContext) -> _RunTree:
    key, client = _study_key(study), store.client
    run = _find_study_run(client, key)
    if run is None:
        experiment_id = _experiment_id(store, experiment)
        tags = {**_study_tags(study), "autocompress.kind": "study", "autocompress.key": key}
        # Looked for again, because a deleted experiment comes back with its runs.
        run = _find_study_run(client, key) or client.create_run(experiment_id, tags=tags, run_name=study.name)
    return _RunTree(client, run, study)


def _study_key(study: StudyContext) -> str:
    """What tells this study from another of the same name in another folder; kept beside its Optuna database."""
    path = study.folder / "mlflow.json"
    keys: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if study.name not in keys:
        keys[study.name] = uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
    return keys[study.name]


def _find_study_run(client: MlflowClient, key: str) -> Run | None:
    """The study's run in whichever experiment it was begun, so that another device does not begin it anew."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`autocompress.key` = '{key}'", max_results=1)
    return runs[0] if runs else None


def _experiment_id(store: _Store, name: str) -> str:
    found = store.client.get_experiment_by_name(name)
    if found is None:
        return str(store.client.create_experiment(name, artifact_location=store.artifacts, tags=_experiment_tags()))
    if found.lifecycle_stage == "deleted":
        store.client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _experiment_tags() -> dict[str, str]:
    """A saved view of the table of runs, since MLflow shows no metric in it and cuts names short until someone clicks.

    It is chosen under "Views" or by `?viewStateShareKey=autocompress` in the address.
    """
    columns = [column for column in _COLUMN_WIDTHS if column.startswith(("metrics.", "tags."))]
    state = {"selectedColumns": columns, "columnOrder": list(_COLUMN_WIDTHS), "columnWidths": _COLUMN_WIDTHS}
    view = {"name": "autocompress", "createdAt": int(time.time() * 1000), "state": json.dumps(state)}
    # The kind: MLflow's pages for models instead of those for language model applications.
    kind = "custom_model_development"
    return {"mlflow.experimentKind": kind, "mlflow.sharedViewState.autocompress": json.dumps(view)}


class _RunTree:
    """The run of a study and its children: at most one for each trial."""

    def __init__(self, client: MlflowClient, run: Run, study: StudyContext) -> None:
        self._client, self._study = client, study
        self._experiment_id, self._run_id = str(run.info.experiment_id), str(run.info.run_id)
        self._last_start_ms: int = run.info.start_time
        self._logged: set[str] = set()
        self._begin(run)

    def _begin(self, run: Run) -> None:
        # Params cannot be changed, and a run from an earlier search has them unless it was cut short.
        params = {key: value for key, value in _study_params(self._study).items() if key not in run.data.params}
        note = f"Searching. {_limits(self._study.budget)}.\n"
        self._log(self._run_id, params=params, tags={**_study_tags(self._study), "mlflow.note.content": note})
        if self._study.config:
            self._client.log_text(self._run_id, json.dumps(self._study.config, indent=2, default=str), "config.json")
        self._client.update_run(self._run_id, status="RUNNING")

    def reconcile(self, records: Sequence[TrialRecord], also: Collection[str] = (_FINAL,)) -> None:
        """Keep one finished child for each record (and those named), drop the others, add what is missing."""
        by_key = {_key(record): record for record in [_baseline_record(self._study), *records]}
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
        key = _key(record)
        if key in self._logged:
            return
        run_id = self._create(record)
        model_id = self._log_model(run_id, record, model) if model else None
        self._log(run_id, metrics=_metrics(record), params=_params(record), model_id=model_id)
        self._log_files(run_id, record)
        # Last: a child that has ended is whole.
        self._client.set_terminated(run_id, _STATUS[record.state])
        self._logged.add(key)

    def finish(self, result: SearchResult) -> None:
        """Add the delivered file, write the answer on the study's run and end it."""
        # What an interruption left is mended, and the file that an earlier search of this study delivered is dropped.
        self.reconcile(result.records, also=())
        self.add(_final_record(result), model=result.best.artifact.path)
        self._log(self._run_id, metrics=_result_metrics(result), tags=_result_tags(self._study, result))
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
        tags = {"mlflow.parentRunId": self._run_id, **_study_tags(self._study), **_trial_tags(record)}
        run = self._client.create_run(self._experiment_id, self._last_start_ms, tags, _run_name(record))
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Everything about a run in one call, thirty times faster than one by one."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, now, 0, model_id=model_id) for key, value in (metrics or {}).items()],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value[:_TAG_CHARACTERS]) for key, value in (tags or {}).items()],
        )

    def _log_dict(self, run_id: str, name: str, values: Mapping[str, Any]) -> None:
        if values:
            self._client.log_text(run_id, json.dumps(values, indent=2, default=str), name)

    def _log_files(self, run_id: str, record: TrialRecord) -> None:
        """The policy and the per-layer table, in one call."""
        with TemporaryDirectory() as folder:
            Path(folder, "policy.json").write_text(json.dumps(record.policy.to_dict(), indent=2), encoding="utf-8")
            if record.layers:
                Path(folder, _LAYER_TABLE).write_text(json.dumps(_layer_table(record.layers)), encoding="utf-8")
            self._client.log_artifacts(run_id, folder)

    def _log_file(self, path: Path, folder: str | None = None) -> None:
        if path.exists():
            self._client.log_artifact(self._run_id, str(path), folder)

    def _log_model(self, run_id: str, record: TrialRecord, path: Path) -> str:
        """The file as an MLflow model: what `mlflow.onnx.log_model` does, but without an active run and byte for byte."""
        import onnx
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        tags = {**_study_tags(self._study), **_trial_tags(record), **_figures(record)}
        name = re.sub(r"[/:.%\"']", "_", self._study.model)  # MLflow refuses these
        model = self._client.create_logged_model(self._experiment_id, name, run_id, tags=tags, params=_params(record))
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        with TemporaryDirectory() as folder:
            proto = onnx.load(path)
            _mlflow_onnx().save_model(
                proto,
                f"{folder}/model",
                mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
                signature=_signature(proto),
                pip_requirements=_requirements(),
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
            # What was measured is what is delivered: not the file as written again by another version of onnx.
            shutil.copyfile(path, f"{folder}/model/model.onnx")
            self._client.log_model_artifacts(model.model_id, f"{folder}/model")
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)


def _mlflow_onnx() -> ModuleType:
    with warnings.catch_warnings():
        # While it is imported, MLflow warns of the type hints in its own modules.
        warnings.filterwarnings("ignore", message=".*type hint", category=UserWarning)
        import mlflow.onnx
        import mlflow.pyfunc
    return mlflow.onnx


def _signature(proto: ModelProto) -> ModelSignature:
    """Names, types and shapes of the graph's inputs and outputs."""
    from mlflow.models import ModelSignature

    weights = {initializer.name for initializer in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    return ModelSignature(inputs=_schema(inputs), outputs=_schema(proto.graph.output))


def _schema(values: Iterable[ValueInfoProto]) -> Schema:
    from mlflow.types import Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors = [(value.name, value.type.tensor_type) for value in values]
    return Schema([TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), _shape(tensor), name) for name, tensor in tensors])


def _shape(tensor: TypeProto.Tensor) -> tuple[int, ...]:
    """-1 is a size that the file leaves open."""
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)


def _requirements() -> list[str]:
    """What loads the model: given, because inferring it would load the model in a process of its own."""
    return [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnx", "onnxruntime")]


# Records that are not trials.


def _baseline_record(study: StudyContext) -> TrialRecord:
    violations = study.budget.violations(study.baseline)
    return TrialRecord(-1, "baseline", "complete", "done", "", Policy(), study.baseline, violations, study.reference.sha256)


def _final_record(result: SearchResult) -> TrialRecord:
    """The delivered file, on the report set; what was done to its layers is told by the trial that found it."""
    layers = [record.layers for record in result.records if record.number == result.best_trial]
    violations = result.budget.violations(result.best.measurement)
    return TrialRecord(
        number=-1 if result.best_trial is None else result.best_trial,
        kind="final",
        state="complete",
        gate="done",
        reason="",
        policy=result.policy,
        measurement=result.best.measurement,
        violations=violations,
        sha256=result.best.artifact.sha256,
        layers=layers[0] if layers else (),
    )


# What is written on a run.


def _key(record: TrialRecord) -> str:
    """What tells the children of a study apart."""
    return record.kind if record.kind in (_BASELINE, _FINAL) else str(record.number)


def _run_name(record: TrialRecord) -> str:
    """Sorts by trial and speaks: `t0042 4.7b s35 0.41x 88.1%` is number, bits, sparsity, latency and accuracy."""
    measured, bits, sparsity = record.measurement, _mean(record.layers, "bits"), _mean(record.layers, "sparsity") or 0.0
    parts = [
        record.kind if record.kind in (_BASELINE, _FINAL) else f"t{record.number:04d}",
        None if bits is None else f"{bits:.1f}b",
        f"s{100 * sparsity:.0f}" if sparsity >= 0.005 else None,
        None if measured.latency_ratio is None else f"{measured.latency_ratio:.2f}x",
        _percent(measured.accuracy) if record.state == "complete" else f"{record.state} at {record.gate}",
    ]
    return " ".join(part for part in parts if part)


def _percent(value: float | None) -> str:
    """A metric that is no share (a divergence, say) keeps its own unit."""
    if value is None:
        return ""
    return f"{100 * value:.1f}%" if 0 <= value <= 1 else f"{value:.3g}"


def _mean(layers: Sequence[LayerRow], column: str) -> float | None:
    """Mean over all weights."""
    parameters = sum(row.parameters for row in layers)
    return sum(getattr(row, column) * row.parameters for row in layers) / parameters if parameters else None


def _metrics(record: TrialRecord) -> dict[str, float]:
    measured = record.measurement
    latency: Mapping[str, Any] = asdict(measured.latency) if measured.latency else {}
    found: dict[str, float | None] = {
        "quality/accuracy": measured.accuracy,
        "quality/accuracy_drop": measured.accuracy_drop,
        "quality/images": measured.images or None,
        "latency/median_ms": measured.latency_ms,
        "latency/p95_ms": latency.get("p95_ms"),
        "latency/ratio": measured.latency_ratio,
        "latency/ratio_low": latency.get("ratio_low"),
        "latency/ratio_high": latency.get("ratio_high"),
        "size/bytes": measured.size_bytes,
        "size/ratio": measured.size_ratio,
        "weights/mean_bits": _mean(record.layers, "bits"),
        "weights/sparsity": _mean(record.layers, "sparsity"),
        "violation/total": record.violation if record.violations else None,
        **{f"violation/{name}": excess for name, excess in record.violations.items()},
        **{f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()},
    }
    return {key: float(value) for key, value in found.items() if value is not None}


def _result_metrics(result: SearchResult) -> dict[str, float]:
    """The delivered file's figures under the names that its trial has, and what only a whole search has."""
    states = Counter[str](record.state for record in result.records if record.kind not in (_BASELINE, _FINAL))
    baseline = result.baseline.measurement
    found: dict[str, float | None] = {
        **_metrics(_final_record(result)),
        "quality/accuracy_drop": result.drop,
        "quality/accuracy_drop_low": result.drop_ci[0],
        "quality/accuracy_drop_high": result.drop_ci[1],
        "quality/selection_gap": result.selection_gap,
        "baseline/accuracy": baseline.accuracy,
        "baseline/latency_median_ms": baseline.latency_ms,
        "baseline/size_bytes": baseline.size_bytes,
        "seconds/search": result.seconds,
        **{f"trials/{state}": states[state] for state in _STATUS},
    }
    return {key: float(value) for key, value in found.items() if value is not None}


def _study_params(study: StudyContext) -> dict[str, str]:
    facts = {"model": study.model, "data": study.data, "target": study.target, "objective": study.objective}
    return {**facts, **{f"budget/{name}": f"{limit:g}" for name, limit in study.budget.limits().items()}}


def _params(record: TrialRecord) -> dict[str, str]:
    """What was done, short enough for a column; the whole policy is an artifact."""
    layers: Sequence[Any] = record.layers or list(record.policy.layers.values())
    found = {
        "quantizers": _counts(layer.quantizer if layer.bits < FLOAT_BITS else "float" for layer in layers),
        "pruners": _counts(layer.pruner for layer in layers if layer.sparsity > 0),
        "channel_pruners": _counts(group.pruner for group in record.policy.channels.values() if group.sparsity > 0),
        "float_ops": str(sum(precision == "float" for precision in record.policy.ops.values())),
        "policy": record.policy.digest,
    }
    return {key: value for key, value in found.items() if value}


def _counts(names: Iterable[str | None]) -> str:
    """`12 int8, 7 int4`, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def _study_tags(study: StudyContext) -> dict[str, str]:
    """On each run, since MLflow's filters see only the run itself."""
    tags = {
        "study": study.name,
        "model": study.model,
        "data": study.data,
        "device": study.device,
        "runtime": _runtime(study),
        "plugins": ", ".join(f"{name} {version}" for name, version in study.versions.items()),
    }
    return {"mlflow.source.name": "autocompress", **{f"autocompress.{key}": value for key, value in tags.items()}}


def _runtime(study: StudyContext) -> str:
    return f"{study.target} {study.versions.get(study.target, '')}".strip()


def _trial_tags(record: TrialRecord) -> dict[str, str]:
    tags = {
        "trial": _key(record),
        "kind": record.kind,
        "state": record.state,
        "gate": record.gate,
        "feasible": str(record.feasible).lower(),
        "reason": record.reason,
        "warnings": "; ".join(record.warnings),
        "sha256": record.sha256,
    }
    named = {f"autocompress.{key}": value[:_TAG_CHARACTERS] for key, value in tags.items() if value}
    # What `mlflow.log_table` leaves on a run, so that MLflow shows the layers as a table.
    table = json.dumps([{"path": _LAYER_TABLE, "type": "table"}])
    return {**named, "mlflow.loggedArtifacts": table} if record.layers else named


def _figures(record: TrialRecord) -> dict[str, str]:
    return {f"autocompress.{key}": f"{value:.10g}" for key, value in _metrics(record).items() if not key.startswith("seconds/")}


def _layer_table(layers: Sequence[LayerRow]) -> dict[str, list[Any]]:
    """The form that `mlflow.log_table` writes and `mlflow.load_table` reads."""
    return {"columns": [field.name for field in fields(LayerRow)], "data": [list(asdict(row).values()) for row in layers]}


# The answer, for a person.


def _result_tags(study: StudyContext, result: SearchResult) -> dict[str, str]:
    best = "FP32" if result.best_trial is None else str(result.best_trial)
    return {"mlflow.note.content": _note(study, result), "autocompress.status": result.status, "autocompress.best_trial": best}


def _note(study: StudyContext, result: SearchResult) -> str:
    """Markdown that begins with the answer."""
    file = f"`{result.best.artifact.path}`, SHA-256 `{result.best.artifact.sha256}`"
    facts = f"{_limits(result.budget)}. {study.device}, {_runtime(study)}."
    return f"{_answer(result)}\n\n```\n{table(result)}\n```\n\n{facts}\n\n{file}\n"


def _answer(result: SearchResult) -> str:
    file = f"{_gain(result)} than FP32"
    return {
        "feasible": f"**Ship `best/model.onnx`: {file}.**",
        "unproven": f"**Ship `best/model.onnx`: {file}**, though the report set cannot show that the accuracy limit is met.",
        "infeasible": f"**Nothing fits the budget.** The nearest is {file}.",
        "not_worth_it": "**Ship the FP32 file**: nothing that was tried is better.",
        "interrupted": f"**Interrupted.** The best so far is {file}.",
    }[result.status]


def _gain(result: SearchResult) -> str:
    measured, drop = result.best.measurement, result.drop
    accuracy = f"{100 * abs(drop):.1f} points {'less' if drop >= 0 else 'more'} accurate"
    return ", ".join(filter(None, [_times(measured.latency_ratio, "faster", "slower"), _times(measured.size_ratio), accuracy]))


def _times(ratio: float | None, below: str = "smaller", above: str = "larger") -> str:
    """`2.43x faster` for a ratio of 0.41."""
    if not ratio:
        return ""
    return f"{1 / ratio:.2f}x {below}" if ratio <= 1 else f"{ratio:.2f}x {above}"


def _limits(budget: Budget) -> str:
    limits = ", ".join(f"`{name}` ≤ {limit:g}" for name, limit in budget.limits().items())
    return f"Budget: {limits or 'none'}"
