"""Against a real MLflow in a SQLite file: what its tables show, and what is left after a search was killed anywhere."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import sqlalchemy
from autocompress_plugins.mlflow_tracker import MlflowTracker, autocompress_trackers
from autocompress_plugins.mlflow_tracker.answer import note
from autocompress_plugins.mlflow_tracker.store import Store
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from omegaconf import OmegaConf
from onnx import TensorProto, helper, numpy_helper

from autocompress import Budget, Latency, LayerPolicy, Measurement, Policy, SearchResult, StudyContext, Tracker, TrialRecord
from autocompress.artifact import Artifact
from autocompress.budget import Energy, Footprint
from autocompress.data_set import DataSet
from autocompress.record import Final, LayerRow, Status
from autocompress.registry import load_registry
from autocompress.testing import TrackerContract

BUDGET = Budget(size_ratio=0.4, accuracy_drop=0.01)
FOLDER = "ml flow #1 100%"
"""An awkward folder name, because both the database and the artifacts are named by an URI."""


def latency(ratio: float) -> Latency:
    return Latency(
        median_ms=2.0 * ratio,
        p95_ms=2.2 * ratio,
        reference_median_ms=2.0,
        ratio=ratio,
        ratio_low=ratio - 0.01,
        ratio_high=ratio + 0.01,
        rounds=50,
        device="cpu",
    )


def measured(ratio: float, size: float, accuracy: float) -> Measurement:
    return Measurement(
        size_bytes=int(1_000_000 * size),
        size_ratio=size,
        latency_ms=2.0 * ratio,
        latency_ratio=ratio,
        accuracy=accuracy,
        accuracy_drop=0.881 - accuracy,
        images=1000,
        latency=latency(ratio),
        memory_bytes=int(5_000_000 * size),
        load_ms=40.0 * ratio,
        footprint=Footprint(int(5_000_000 * size), int(60_000_000 * size), 40.0 * ratio, 30.0 * ratio, 3.0),
        energy=Energy(0.02 * ratio),
    )


def layer(name: str, quantizer: str, bits: int, parameters: int, sparsity: float = 0.0) -> LayerRow:
    pruner = "sparse" if sparsity else ""
    return LayerRow(name, "conv2d", parameters, 10, quantizer, bits, pruner, sparsity, "", parameters, -0.5, 0.5, 0.01)


POLICY = Policy({"conv1": LayerPolicy("int8", 8), "conv2": LayerPolicy("int4", 4, "sparse", 0.5)}, ops={"add": "float"})
LAYERS = (layer("conv1", "int8", 8, 1000), layer("conv2", "int4", 4, 3000, 0.5), layer("fc", "", 32, 0))
BASELINE = measured(1.0, 1.0, 0.881)


def complete(number: int, accuracy: float = 0.878) -> TrialRecord:
    figures = measured(0.41, 0.3, accuracy)
    return TrialRecord(
        number,
        "trial",
        "complete",
        "done",
        "",
        POLICY,
        figures,
        BUDGET.violations(figures),
        "ab" * 32,
        LAYERS,
        seconds={"build": 0.05, "latency": 1.5},
    )


def pruned(number: int) -> TrialRecord:
    figures = Measurement(size_bytes=500_000, size_ratio=0.5)
    violations = BUDGET.violations(figures)
    return TrialRecord(number, "seed", "pruned", "size", "too large", POLICY, figures, violations, "cd" * 32, LAYERS)


def failed(number: int) -> TrialRecord:
    nothing = Measurement()
    return TrialRecord(number, "trial", "failed", "build", "CheckError: 12.1 dB", POLICY, nothing, {}, warnings=["odd", "too"])


RECORDS = [pruned(0), complete(1), failed(2)]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing here cuts the power, and a commit that waits for it takes most of a test's time."""

    def hurry(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", hurry)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", hurry)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: MLflow's migrations take two seconds, so one is made by the tracker itself and then copied."""
    root = tmp_path_factory.mktemp("migrated")
    reference = Artifact(root / "fp32.onnx", "onnx", 0, "")
    MlflowTracker(root=str(root / FOLDER)).autocompress_search_started(study_in(root / "study", reference), [])
    assert sorted(path.name for path in (root / FOLDER).iterdir()) == ["artifacts", "mlflow.db"]
    fresh = root / "empty.db"
    shutil.copy(root / FOLDER / "mlflow.db", fresh)
    client = MlflowClient(tracking_uri=f"sqlite:///{fresh}")
    for experiment in client.search_experiments(filter_string="name != 'Default'"):
        client.rename_experiment(experiment.experiment_id, "earlier")
        client.delete_experiment(experiment.experiment_id)
    return fresh


@pytest.fixture
def root(tmp_path: Path, migrated: Path) -> Path:
    (tmp_path / FOLDER).mkdir()
    shutil.copy(migrated, tmp_path / FOLDER / "mlflow.db")
    return tmp_path / FOLDER


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """A matrix product as a file."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "weight")
    value = helper.make_tensor_value_info
    inputs, outputs = value("image", TensorProto.FLOAT, ["N", 8]), value("logits", TensorProto.FLOAT, ["N", 4])
    product = helper.make_node("MatMul", ["image", "weight"], ["logits"])
    graph = helper.make_graph([product], "net", [inputs], [outputs], [weight])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return Artifact.of(path, "onnx")


def study_in(folder: Path, reference: Artifact, **changes: Any) -> StudyContext:
    study = StudyContext(
        id="11" * 16,
        name="digits-latency-0123abcd",
        model="net",
        data="digits",
        target="onnxruntime",
        metric="accuracy",
        device="some CPU",
        objective="latency",
        budget=BUDGET,
        folder=folder,
        baseline=BASELINE,
        reference=reference,
        versions={"runtime": "onnxruntime 1.31.1", "optuna": "5.0.0", "autocompress": "0.1.0"},
        config={"search": {"trials": 3}},
    )
    return replace(study, **changes)


@pytest.fixture
def study(tmp_path: Path, model: Artifact) -> StudyContext:
    return study_in(tmp_path / "net-digits", model)


def result_of(study: StudyContext, model: Artifact, **changes: Any) -> SearchResult:
    best = Final(model, measured(0.41, 0.3, 0.876), (0.85, 0.9))
    result = SearchResult(
        status="feasible",
        objective="latency",
        budget=BUDGET,
        baseline=Final(model, BASELINE, (0.86, 0.9)),
        best=best,
        policy=POLICY,
        best_trial=1,
        drop=0.005,
        drop_ci=(0.001, 0.009),
        drop_upper=0.008,
        drop_p=0.03,
        selection_gap=0.002,
        binding_constraint=None,
        records=RECORDS,
        front=[1],
        seconds=12.5,
        folder=study.folder,
        versions=study.versions,
        device=study.device,
        minimum_runtime={"opset": 21},
        reasons=["a reason"],
    )
    return replace(result, **changes)


class TestMlflowTracker(TrackerContract):
    @pytest.fixture
    def tracker(self, root: Path) -> Tracker:
        return MlflowTracker(root=str(root))


def track(root: Path, study: StudyContext, new: Sequence[TrialRecord], earlier: Sequence[TrialRecord] = ()) -> MlflowTracker:
    """A search that starts with the earlier records and finishes the new ones."""
    tracker = MlflowTracker(root=str(root))
    tracker.autocompress_search_started(study, earlier)
    for record in new:
        tracker.autocompress_trial_finished(record)
    return tracker


def runs(client: MlflowClient, kind: str = "", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """Every run of the given kind, or of all kinds but the study's, by name."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    condition = f"tags.`autocompress.kind` = '{kind}'" if kind else "tags.`autocompress.kind` != 'study'"
    return list(client.search_runs(experiments, condition, view, order_by=["tags.`mlflow.runName`"]))


def trials(client: MlflowClient) -> list[str]:
    return sorted(run.data.tags["autocompress.trial"] for run in runs(client))


def test_each_trial_is_a_child_whatever_its_end(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    (parent,) = runs(client, "study")
    assert (parent.info.run_name, parent.info.status) == (study.name, "RUNNING")
    table = [(run.info.run_name, run.info.status, run.data.tags["autocompress.kind"]) for run in runs(client)]
    assert table == [
        ("baseline 1.00x accuracy 88.1%", "FINISHED", "baseline"),
        ("t0000 5.0b s38 pruned at size", "FINISHED", "seed"),
        ("t0001 5.0b s38 0.41x accuracy 87.8%", "FINISHED", "trial"),
        ("t0002 failed at build", "FAILED", "failed"),
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(client)} == {parent.info.run_id}


def test_a_trial_of_another_budget_is_marked_and_comes_once(root: Path, client: MlflowClient, study: StudyContext) -> None:
    imported = replace(complete(0), kind="imported", reason="measured as trial 7 of digits-pareto-4567cdef", seconds={})
    for _ in range(2):
        track(root, study, [], earlier=[imported])
    (run,) = [run for run in runs(client) if run.data.tags["autocompress.trial"] == "0"]
    assert run.data.tags["autocompress.kind"] == "imported"
    assert run.data.tags["autocompress.reason"] == imported.reason
    assert run.info.end_time - run.info.start_time < 5000, "no time of this study went into it"


def test_experiment_is_the_model_on_the_device_with_a_view_of_the_figures(
    root: Path, client: MlflowClient, study: StudyContext
) -> None:
    track(root, study, [])
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    assert experiment.name == "net on onnxruntime, some CPU"
    assert experiment.artifact_location == (root / "artifacts").as_uri()
    view = json.loads(experiment.tags["mlflow.sharedViewState.autocompress"])
    assert "metrics.`quality/accuracy`" in json.loads(view["state"])["selectedColumns"]


def test_metrics_tell_section_and_unit(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    (run,) = client.search_runs(["2"], "tags.`autocompress.trial` = '1'")
    assert run.data.metrics == pytest.approx(
        {
            "quality/accuracy": 0.878,
            "quality/accuracy_drop": 0.003,
            "quality/images": 1000,
            "latency/median_ms": 0.82,
            "latency/p95_ms": 0.902,
            "latency/ratio": 0.41,
            "latency/ratio_low": 0.4,
            "latency/ratio_high": 0.42,
            "size/bytes": 300_000,
            "size/ratio": 0.3,
            "memory/bytes": 1_500_000,
            "memory/process_bytes": 18_000_000,
            "load/ms": 16.4,
            "load/reload_ms": 12.3,
            "load/first_inference_ms": 3.0,
            "energy/joules": 0.0082,
            "weights/mean_bits": 5.0,
            "weights/sparsity": 0.375,
            "violation/total": 0,
            "violation/size_ratio": -0.25,
            "violation/accuracy_drop": -0.7,
            "seconds/build": 0.05,
            "seconds/latency": 1.5,
        }
    )
    assert run.data.params == {
        "quantizers": "1 int8, 1 int4, 1 float",
        "pruners": "1 sparse",
        "float_ops": "1",
        "policy": POLICY.digest,
    }


def test_a_filter_needs_only_the_tags_of_the_child(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    by_trial = {run.data.tags["autocompress.trial"]: run.data.tags for run in runs(client)}
    found = {key.removeprefix("autocompress."): value for key, value in by_trial["2"].items() if "autocompress." in key}
    expected = {
        "study": study.name,
        "model": "net",
        "data": "digits",
        "target": "onnxruntime",
        "objective": "latency",
        "metric": "accuracy",
        "device": "some CPU",
        "runtime": "onnxruntime 1.31.1",
        "versions": "optuna 5.0.0, autocompress 0.1.0",
        "trial": "2",
        "kind": "failed",
        "state": "failed",
        "gate": "build",
        "feasible": "false",
        "reason": "CheckError: 12.1 dB",
        "warnings": "odd; too",
    }
    assert found == expected
    assert [by_trial[key]["autocompress.feasible"] for key in ("baseline", "0", "1")] == ["false", "false", "true"]


@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")  # MLflow's log_table under pandas 3
def test_policy_and_layers_are_artifacts(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    (run,) = client.search_runs(["2"], "tags.`autocompress.trial` = '1'")
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    assert Policy.from_dict(json.loads((folder / "policy.json").read_text())) == POLICY
    # The very file and tag that MLflow's own `log_table` makes.
    other = client.create_run("2").info.run_id
    frame = pd.DataFrame([asdict(row) for row in LAYERS])
    first = ["layer", "quantizer", "bits", "pruner", "sparsity", "stored_bytes"]
    client.log_table(other, frame[first + [column for column in frame if column not in first]], "layers.json")
    expected = Path(client.download_artifacts(other, "layers.json"))
    assert json.loads((folder / "layers.json").read_text()) == json.loads(expected.read_text())
    tag = "mlflow.loggedArtifacts"
    assert json.loads(run.data.tags[tag]) == json.loads(client.get_run(other).data.tags[tag])


def test_a_trial_is_one_batch_and_costs_little(
    root: Path, client: MlflowClient, study: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = track(root, study, [])
    batches: Counter[str] = Counter()
    log_batch = MlflowClient.log_batch

    def counting(self: MlflowClient, run_id: str, *args: Any, **kwargs: Any) -> None:
        batches[run_id] += 1
        log_batch(self, run_id, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    seconds = []
    for number in range(5):
        start = time.perf_counter()
        tracker.autocompress_trial_finished(complete(number))
        seconds.append(time.perf_counter() - start)
    (parent,) = runs(MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}"), "study")
    assert batches.pop(parent.info.run_id) == 5  # a point of the curves for each trial
    assert list(batches.values()) == [1] * 5
    assert statistics.median(seconds) < 0.5  # 0.03 s when nothing else runs


def test_children_are_in_the_order_of_the_trials(root: Path, client: MlflowClient, study: StudyContext) -> None:
    records = [replace(complete(number), seconds={"latency": 5.0 * number}) for number in range(4)]
    track(root, study, records[2:], earlier=records[:2])
    started = client.search_runs(["2"], "tags.`autocompress.kind` != 'study'", order_by=["start_time"])
    assert [run.data.tags["autocompress.trial"] for run in started] == ["baseline", "0", "1", "2", "3"]


def test_a_second_start_adds_nothing(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    before = [run.info.run_id for run in runs(client)]
    track(root, study, [], earlier=RECORDS)
    assert [run.info.run_id for run in runs(client)] == before
    assert len(runs(client, "study", ViewType.ALL)) == 1


def test_a_trial_that_mlflow_missed_is_added(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS[:1])
    track(root, study, [complete(3)], earlier=RECORDS)
    assert trials(client) == ["0", "1", "2", "3", "baseline"]


class Killed(BaseException):
    """The process ends here; every call before has reached the database."""


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_artifacts", "set_terminated"])
def test_killed_in_a_trial_then_started_again(
    root: Path, client: MlflowClient, study: StudyContext, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    tracker = track(root, study, RECORDS[:2])

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, call, kill)
        tracker.autocompress_trial_finished(RECORDS[2])
    track(root, study, [complete(3)], earlier=RECORDS)
    assert trials(client) == ["0", "1", "2", "3", "baseline"]
    assert {run.info.status for run in runs(client, view=ViewType.ALL)} <= {"FINISHED", "FAILED", "KILLED"}


@pytest.mark.parametrize("call", ["create_run", "log_batch", "update_run"])
def test_killed_at_the_first_start_then_started_again(
    root: Path, client: MlflowClient, study: StudyContext, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MlflowClient, call, kill)
        track(root, study, [])
    track(root, study, RECORDS)
    (parent,) = runs(client, "study")
    assert parent.data.params == {
        "model": "net",
        "data": "digits",
        "target": "onnxruntime",
        "objective": "latency",
        "budget/size_ratio": "0.4",
        "budget/accuracy_drop": "0.01",
    }
    assert trials(client) == ["0", "1", "2", "baseline"]


def test_another_id_is_another_study_even_under_the_same_name(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    track(root, replace(study, id="22" * 16), RECORDS[:1])
    assert [run.info.run_name for run in runs(client, "study")] == [study.name, study.name]
    assert trials(client) == ["0", "0", "1", "2", "baseline", "baseline"]


def test_the_same_id_is_the_same_study_even_in_another_folder(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    track(root, replace(study, folder=study.folder.parent / "moved"), [complete(3)], earlier=RECORDS)
    assert len(runs(client, "study")) == 1
    assert trials(client) == ["0", "1", "2", "3", "baseline"]


def test_runs_of_trials_that_are_no_longer_there_are_dropped(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    track(root, study, [complete(0)], earlier=[])
    assert trials(client) == ["0", "baseline"]
    assert runs(client, "trial")[0].info.run_name.startswith("t0000 5.0b s38 0.41x")


def test_a_study_that_moved_to_another_device_keeps_its_run(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    track(root, replace(study, device="another CPU"), [complete(3)], earlier=RECORDS)
    assert len(runs(client, "study")) == 1
    assert trials(client) == ["0", "1", "2", "3", "baseline"]


def test_a_deleted_experiment_comes_back_with_its_runs(root: Path, client: MlflowClient, study: StudyContext) -> None:
    track(root, study, RECORDS)
    client.delete_experiment("2")
    track(root, study, [], earlier=RECORDS)
    assert len(runs(client, "study")) == 1
    assert trials(client) == ["0", "1", "2", "baseline"]


def test_the_result_is_on_the_studys_run(root: Path, client: MlflowClient, study: StudyContext, model: Artifact) -> None:
    tracker = track(root, study, RECORDS)
    (study.folder / "best").mkdir(parents=True)
    (study.folder / "result.json").write_text("{}")
    (study.folder / "report.html").write_text("<p>")
    (study.folder / "best" / "policy.yaml").write_text("version: 1")
    tracker.autocompress_search_finished(result_of(study, model))
    (run,) = runs(client, "study")
    text = run.data.tags["mlflow.note.content"]
    assert run.info.status == "FINISHED"
    assert text.startswith("**Ship best/model.onnx: 2.44x faster and 3.33x smaller than FP32, accuracy 0.5 points lower (")
    assert "| accuracy | 88.10% | 87.60% | -0.50 points |" in text and "| 2.000 ms | 0.820 ms | 2.44x faster |" in text
    assert "the drop is 0.10 to 0.90 points (95 % interval)." in text
    assert "`size_ratio` ≤ 0.4" in text and "- a reason\n" in text and "some CPU, onnxruntime 1.31.1." in text
    assert run.data.tags["autocompress.status"] == "feasible" and run.data.tags["autocompress.best_trial"] == "1"
    figures = {
        "quality/accuracy": 0.876,
        "quality/accuracy_drop": 0.005,
        "quality/accuracy_drop_high": 0.009,
        "quality/accuracy_drop_p": 0.03,
        "latency/ratio": 0.41,
        "fp32/accuracy": 0.881,
        "trials/complete": 1,
        "trials/pruned": 1,
        "trials/failed": 1,
        "seconds/search": 12.5,
    }
    assert {key: run.data.metrics[key] for key in figures} == pytest.approx(figures)
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    figures = [
        f"figures/{name}" for name in ("best_layers.png", "figures.html", "pareto_front.png", "progress.png", "seconds.png")
    ]
    assert files == ["best/policy.yaml", "config.json", *figures, "report.html", "result.json"]
    assert "Plotly.newPlot" in (folder / "figures/figures.html").read_text()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("unproven", "**best/model.onnx is 2.44x faster"),
        ("infeasible", "**Nothing fits the budget; the nearest file is 2.44x faster"),
        ("not_worth_it", "**Ship the FP32 file: nothing that was tried is better"),
        ("interrupted", "**Interrupted; the best so far is 2.44x faster"),
    ],
)
def test_the_note_begins_with_the_answer(study: StudyContext, model: Artifact, status: Status, answer: str) -> None:
    assert note(study, result_of(study, model, status=status)).startswith(answer)


def test_another_metric_keeps_its_own_unit(root: Path, client: MlflowClient, study: StudyContext, model: Artifact) -> None:
    baseline, best = replace(BASELINE, accuracy=-0.5), replace(BASELINE, accuracy=-0.5123)
    kl = replace(study, metric="kl", percent=False, baseline=baseline)
    finals = {"baseline": Final(model, baseline, (-0.6, -0.4)), "best": Final(model, best, (-0.6, -0.4))}
    result = result_of(kl, model, drop=0.0123, drop_ci=(-0.001, 0.02), records=[], quality=kl.quality, **finals)
    track(root, kl, []).autocompress_search_finished(result)
    assert runs(client, "baseline")[0].info.run_name == "baseline 1.00x kl -0.5"
    (run,) = runs(client, "study")
    text = run.data.tags["mlflow.note.content"]
    assert run.data.tags["autocompress.metric"] == "kl"
    assert "than FP32, kl 0.0123 lower (" in text and "| kl | -0.5 | -0.5123 | -0.0123 |" in text
    assert "the drop is -0.001 to 0.02 (95 % interval)" in text
    assert "point" not in text and "%" not in text.replace("95 %", "")


SHOW = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true mlflow ui --host 127.0.0.1"
"""Nobody else sees the pages, nothing runs beside them, and nobody is told."""


def test_the_person_is_told_where_to_look(root: Path, study: StudyContext, model: Artifact) -> None:
    told = track(root, study, []).autocompress_search_finished(result_of(study, model, records=[]))
    command = f"MLflow: {SHOW} --backend-store-uri 'sqlite:///{root}/mlflow.db'"
    assert told == f"{command} (then http://127.0.0.1:5000/#/experiments/2/runs?viewStateShareKey=autocompress)"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://somewhere:5000/", "http://somewhere:5000/#/experiments/7/runs?viewStateShareKey=autocompress"),
        ("https://me:secret@somewhere", "https://me:***@somewhere/#/experiments/7/runs?viewStateShareKey=autocompress"),
        ("databricks://profile", "databricks://profile"),
        ("postgresql://me:p@ss:w@db/mlflow", f"{SHOW} --backend-store-uri 'postgresql://me:***@db/mlflow' (then http://"),
    ],
)
def test_a_server_is_told_without_its_password(uri: str, address: str) -> None:
    client = MlflowClient(tracking_uri="http://nowhere")  # not asked
    assert Store(client, uri, None).address("7").startswith(address)


def test_the_delivered_model_answers_as_the_file_does(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact
) -> None:
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    (run,) = runs(client, "final")
    assert run.info.run_name == "final 5.0b s38 0.41x accuracy 87.6%"
    (logged,) = client.search_logged_models(["2"])
    assert (logged.name, logged.status.name, logged.source_run_id) == ("net", "READY", run.info.run_id)
    assert (logged.tags["autocompress.quality/accuracy"], logged.tags["autocompress.sha256"]) == ("0.876", model.sha256)
    assert {metric.key: metric.value for metric in logged.metrics or []}["size/ratio"] == pytest.approx(0.3)
    folder = client.download_artifacts(run.info.run_id, "") and logged.artifact_location
    images = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(model.path)).run(None, {"image": images})[0]
    served = mlflow.pyfunc.load_model(folder)
    assert np.array_equal(served.predict({"image": images})["logits"], expected)
    assert str(served.metadata.signature.inputs) == "['image': Tensor('float32', (-1, 8))]"
    loaded = mlflow.onnx.load_model(folder)
    assert loaded.SerializeToString() == model.path.read_bytes()


def test_the_champion_answers_as_the_file_does(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = study.folder.parent / "example.npy"
    np.save(example, np.random.default_rng(2).normal(size=(1, 8)).astype(np.float32))
    study = replace(study, example=example)
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    version = client.get_model_version_by_alias("net-onnxruntime", "champion")
    assert (version.tags["autocompress.size/ratio"], version.tags["autocompress.quality/accuracy"]) == ("0.3", "0.876")
    (parent,), (final,) = runs(client, "study"), runs(client, "final")
    assert parent.data.tags["autocompress.champion"] == final.data.tags["autocompress.champion"] == "net-onnxruntime/1"
    assert "`models:/net-onnxruntime@champion` (version 1)" in parent.data.tags["mlflow.note.content"]
    uri = f"sqlite:///{root / 'mlflow.db'}"
    images = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(model.path)).run(None, {"image": images})[0]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.onnx.load_model("models:/net-onnxruntime@champion")
        served = mlflow.pyfunc.load_model("models:/net-onnxruntime@champion")
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.SerializeToString() == model.path.read_bytes()
    assert np.array_equal(served.predict({"image": images})["logits"], expected)
    assert np.array_equal(served.input_example["image"], np.load(example))


def test_a_search_that_ends_again_delivers_one_file(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact
) -> None:
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    track(root, study, [], earlier=RECORDS).autocompress_search_finished(result_of(study, model, best_trial=None))
    assert len(runs(client, "final")) == 1
    assert runs(client, "study")[0].data.tags["autocompress.best_trial"] == "FP32"
    assert [version.version for version in client.search_model_versions()] == [1]


def test_the_latest_answer_is_shown_when_the_clock_was_set_back(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    track(root, study, [], earlier=RECORDS).autocompress_search_finished(
        result_of(study, model, best_trial=None, seconds=777.0)
    )
    assert runs(client, "study")[0].data.metrics["seconds/search"] == 777.0


def test_the_same_result_told_again_adds_nothing(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact
) -> None:
    for _ in range(2):
        track(root, study, [], earlier=RECORDS).autocompress_search_finished(result_of(study, model))
        (parent,), (final,) = runs(client, "study"), runs(client, "final", ViewType.ALL)
    assert len(client.search_logged_models(["2"])) == 1
    assert len(client.get_metric_history(parent.info.run_id, "quality/accuracy")) == 1
    assert (parent.info.status, parent.data.tags["autocompress.champion"]) == ("FINISHED", "net-onnxruntime/1")
    assert parent.data.tags["mlflow.note.content"].startswith("**Ship")
    assert len(client.get_metric_history(final.info.run_id, "quality/accuracy")) == 1


@pytest.mark.parametrize("status", ["infeasible", "interrupted"])
def test_what_does_not_ship_is_no_champion(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact, status: Status
) -> None:
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    worse = replace(model, path=study.folder.parent / "worse.onnx", sha256="00" * 32)
    shutil.copy(model.path, worse.path)
    other = result_of(study, worse, status=status, best=Final(worse, measured(0.9, 0.9, 0.5), (0.4, 0.6)))
    track(root, study, [], earlier=RECORDS).autocompress_search_finished(other)
    champion = client.get_model_version_by_alias("net-onnxruntime", "champion")
    assert (champion.version, champion.tags["autocompress.sha256"]) == (1, model.sha256)
    assert len(client.search_model_versions()) == 1


def test_a_better_file_becomes_the_champion(root: Path, client: MlflowClient, study: StudyContext, model: Artifact) -> None:
    track(root, study, RECORDS).autocompress_search_finished(result_of(study, model))
    better = replace(model, sha256="00" * 32)
    result = result_of(study, better, best=Final(better, measured(0.3, 0.2, 0.88), (0.8, 0.9)))
    track(root, study, [], earlier=RECORDS).autocompress_search_finished(result)
    champion = client.get_model_version_by_alias("net-onnxruntime", "champion")
    assert (champion.version, champion.tags["autocompress.size/ratio"]) == (2, "0.2")


def test_curves_have_one_point_for_each_trial(root: Path, client: MlflowClient, study: StudyContext, model: Artifact) -> None:
    records = [pruned(0), complete(1), replace(complete(2), measurement=measured(0.3, 0.2, 0.86)), complete(3), failed(4)]
    records[2] = replace(records[2], violations=BUDGET.violations(records[2].measurement), policy=Policy())
    track(root, study, records[:2])
    tracker = track(root, study, records[3:], earlier=records[:3])
    tracker.autocompress_search_finished(result_of(study, model, records=records))
    (run,) = runs(client, "study")
    found = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in ("best/front_hypervolume", "best/latency_ratio", "best/accuracy")
    }
    # Drop 0.003 of 0.1, latency 0.41, size 0.3; then also drop 0.021, latency 0.3, size 0.2, which is over the budget.
    first, both = 0.97 * 0.59 * 0.7, 0.97 * 0.59 * 0.7 + 0.79 * 0.7 * 0.8 - 0.79 * 0.59 * 0.7
    assert found["best/front_hypervolume"] == [
        (0, 0),
        (1, pytest.approx(first)),
        *((step, pytest.approx(both)) for step in (2, 3, 4)),
    ]
    assert found["best/latency_ratio"] == [(step, 0.41) for step in (1, 2, 3, 4)]
    assert found["best/accuracy"] == [(step, 0.878) for step in (1, 2, 3, 4)]


def test_data_sets_are_inputs_of_the_study(root: Path, client: MlflowClient, study: StudyContext) -> None:
    sets = {use: DataSet(digest, 100, (1, 8, 8), "float32") for use, digest in [("search", "aa" * 8), ("report", "bb" * 8)]}
    study = replace(study, data_sets=sets)
    track(root, study, [])
    track(root, study, [])  # once, however often the study is opened
    (run,) = runs(client, "study")
    inputs = {given.dataset.name: given for given in run.inputs.dataset_inputs}
    assert {name: given.dataset.digest for name, given in inputs.items()} == {"net search": "aa" * 8, "net report": "bb" * 8}
    assert [(tag.key, tag.value) for tag in inputs["net search"].tags] == [("mlflow.data.context", "search")]
    assert len(run.inputs.dataset_inputs) == 2
    assert json.loads(inputs["net report"].dataset.profile)["num_examples"] == 100


@pytest.mark.parametrize("kind", ["study", "trial", "failed", "baseline"])
def test_no_run_has_more_than_twenty_params(root: Path, client: MlflowClient, study: StudyContext, kind: str) -> None:
    limits = Budget(1e6, 0.4, 9.0, 0.9, 0.01, 1e9, 100.0, 95.0)
    track(root, replace(study, budget=limits), RECORDS)
    assert all(len(run.data.params) <= 20 for run in runs(client, kind)) and runs(client, kind)


def test_what_an_interruption_left_open_is_closed_at_the_end(
    root: Path, client: MlflowClient, study: StudyContext, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = track(root, study, RECORDS[:2])

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_batch", interrupt)
        tracker.autocompress_trial_finished(RECORDS[2])
    tracker.autocompress_search_finished(result_of(study, model, status="interrupted"))
    assert trials(client) == ["0", "1", "2", "baseline", "final"]
    assert runs(client, "study")[0].info.status == "KILLED"
    assert "RUNNING" not in {run.info.status for kind in ("", "study") for run in runs(client, kind, ViewType.ALL)}


def test_mlflows_global_state_is_left_alone(root: Path, study: StudyContext, model: Artifact) -> None:
    before = mlflow.get_tracking_uri()
    track(root, study, []).autocompress_search_finished(result_of(study, model, records=[]))
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_another_database_and_experiment(tmp_path: Path, root: Path, study: StudyContext) -> None:
    shutil.copy(root / "mlflow.db", tmp_path / "shared.db")
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    MlflowTracker(root=str(tmp_path / "files"), uri=uri, experiment="mine").autocompress_search_started(study, RECORDS)
    client = MlflowClient(tracking_uri=uri)
    (mine,) = client.search_experiments(filter_string="name = 'mine'")
    assert mine.artifact_location == (tmp_path / "files" / "artifacts").as_uri()
    assert trials(client) == ["0", "1", "2", "baseline"]


def test_an_experiment_of_the_users_gets_the_view(root: Path, client: MlflowClient, study: StudyContext) -> None:
    client.create_experiment("mine", (root / "elsewhere").as_uri(), {"team": "a"})
    MlflowTracker(root=str(root), experiment="mine").autocompress_search_started(study, [])
    (mine,) = client.search_experiments(filter_string="name = 'mine'")
    assert "mlflow.sharedViewState.autocompress" in mine.tags and mine.tags["team"] == "a"
    assert "mlflow.experimentKind" not in mine.tags


@pytest.fixture
def beside_the_study(root: Path, study: StudyContext) -> Iterator[Path]:
    yield root.rename(study.folder.parent / "mlflow")


def test_by_default_runs_are_kept_beside_the_study(beside_the_study: Path, study: StudyContext) -> None:
    MlflowTracker().autocompress_search_started(study, [])
    client = MlflowClient(tracking_uri=f"sqlite:///{beside_the_study / 'mlflow.db'}")
    assert trials(client) == ["baseline"]


def test_a_trial_without_a_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="tracker mlflow: a trial or a result was told before the search's start"):
        MlflowTracker().autocompress_trial_finished(complete(0))


def test_hooks_reach_a_configured_tracker(root: Path, client: MlflowClient, study: StudyContext, model: Artifact) -> None:
    settings = OmegaConf.structured(MlflowTracker)
    assert OmegaConf.to_container(settings) == {"root": "", "uri": "", "experiment": "", "registered_model": ""}
    registry = load_registry([])
    (tracker,) = autocompress_trackers()
    registry.manager.register(tracker(**{**settings, "root": str(root)}))
    hook = registry.manager.hook
    hook.autocompress_search_started(study=study, records=[])
    hook.autocompress_trial_finished(study=study, record=complete(0))
    hook.autocompress_search_finished(study=study, result=result_of(study, model, records=[complete(0)], best_trial=0))
    assert trials(client) == ["0", "baseline", "final"]
