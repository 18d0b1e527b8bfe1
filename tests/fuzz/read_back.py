"""What searches leave and later commands read: records, studies, findings of the probe, tables and journals."""

from __future__ import annotations

import json
from pathlib import Path

from optuna.trial import TrialState, create_trial

from autocompress import ChannelPolicy, LayerPolicy, Policy
from autocompress.artifact import Artifact
from autocompress.budget import Budget, Energy, Footprint, Latency, Measurement
from autocompress.data_set import DataSet
from autocompress.plain import to_plain
from autocompress.prediction.effects import Journal
from autocompress.probing.findings import Case, Finding, Findings
from autocompress.record import BindingConstraint, Final, LayerRow, SearchResult, StudyContext, TrialRecord
from autocompress.reporting.figures import sensitivity
from autocompress.studies.study import RECORD as ATTRIBUTE
from autocompress.studies.study import read_record
from autocompress.studies.study_file import read_study
from tests.fuzz.mutation import mutated_json
from tests.fuzz.scratch_file import scratch_file, scratch_folder
from tests.fuzz.target import Target

LATENCY = Latency(1.0, 1.2, 2.0, 0.5, 0.4, 0.6, 9, "cpu", percentile_ms=1.1, environment="e", load=0.1)
FOOTPRINT = Footprint(None, 5, 1.0, 0.5, 2.0)
MEASURED = Measurement(10, 0.5, 1.0, 0.5, 0.9, 0.0, 9, LATENCY, 0.1, 0.2, None, 1.0, FOOTPRINT, Energy(None, "none"))
ROW = LayerRow("head", "linear", 9, 9, "int8", 8, "", 0.0, "int8", 9, -1.0, 1.0, 0.0)
POLICY = Policy({"head": LayerPolicy("int8", 8)}, {"c": ChannelPolicy("sparse", 0.5)}, {"n1": "integer"})
RECORD = TrialRecord(
    3, "trial", "complete", "done", "", POLICY, MEASURED, {"size_ratio": -0.5}, "ab", (ROW,), ("w",), {"build": 1.0}
)
ARTIFACT = Artifact(Path("/x/best/model.onnx"), "onnx", 10, "ab")
FINAL = Final(ARTIFACT, MEASURED, (0.8, 0.95))


def context() -> StudyContext:
    return StudyContext(
        *("1" * 32, "tiny-size-1", "tiny", "ab", "onnxruntime", "accuracy", "cpu", "size", Budget(size_ratio=0.5)),
        *(Path("/x"), MEASURED, ARTIFACT, {"torch": "2"}, {"study": {"storage": None}}),
        self_check=LATENCY,
        data_sets={"search": DataSet("ab", 9, (1, 8, 8), "float32")},
        example=Path("/x/example.npy"),
    )


def result() -> SearchResult:
    return SearchResult(
        *("feasible", "size", Budget(), FINAL, FINAL, POLICY, 3, 0.0, (-0.1, 0.1), 0.1, 0.0),
        *(BindingConstraint("size_ratio", 0.5, 0.6), (), (3,), 9.0, Path("/x"), {"torch": "2"}, "cpu", {"opset": 21}),
        latency_predictions={3: 0.5},
    )


def read_one_record(data: bytes) -> None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):  # Optuna reads the JSON of its database
        return
    trial = create_trial(state=TrialState.FAIL, user_attrs={ATTRIBUTE: values})
    record = read_record(trial)
    written = json.dumps(record.to_dict())
    assert "NaN" in written or TrialRecord.from_dict(json.loads(written)) == record
    assert record.feasible in (True, False)
    assert not record.violation < 0


def read_one_study(data: bytes) -> None:
    saved = read_study(scratch_file("study.json", data))
    json.dumps(to_plain(saved.context, Path("/x")), default=str)


def read_findings(data: bytes) -> None:
    findings = Findings.load(scratch_file("probe.json", data), "k")
    if findings is not None:
        findings.table()


def read_tables(data: bytes) -> None:
    sensitivity(scratch_file("sensitivity.json", data))


def read_journal(data: bytes) -> None:
    journal = Journal(scratch_file("sensitivity.jsonl", data), ["identity"])
    known = journal.get("figures", POLICY)
    assert known is None or all(isinstance(value, (int, float)) for value in known.values())


def findings() -> bytes:
    rows = [
        Finding("layer", "linear", "static", "int8", 8, (Case(0.5, 0.4, 0.6, 0.25), Case(0.7, 0.6, 0.8, 0.3)), 0.5, 0.5),
        Finding("layer", "linear", "static", "int4", 4, (Case(0.5, 0.4, 0.6, 0.2), Case(0.7, 0.6, 0.8, 0.2)), 9.0),
        Finding("op", "Sigmoid", "integer", "", 0, ()),
    ]
    path = scratch_folder() / "seed.json"
    Findings("k", "cpu", "onnxruntime 1", tuple(rows)).save(path)
    return path.read_bytes()


def study(answer: SearchResult | None) -> bytes:
    return json.dumps({"context": to_plain(context(), Path("/x")), "result": to_plain(answer, Path("/x"))}).encode()


OPTION = {"option": "int8", "parameter": "head", "index": 1, "divergence": 0.1, "drop": None, "size_bytes": 9}
TABLES = {
    "layers": [{"layer": "head", "weight_bytes": 9, "macs": 9, "mildest": "int8", "options": [OPTION]}],
    "order": ["head"],
    "options": ["int8"],
    "leave_alone": {"rule": "none", "layers": ["head"], "override": ""},
    "examples": 64,
}


def journal() -> bytes:
    path = scratch_folder() / "seed.jsonl"
    path.unlink(missing_ok=True)
    Journal(path, ["identity"]).put("figures", POLICY, {"divergence": 0.1, "drop": 0.0})
    return path.read_bytes()


RECORDS = Target([json.dumps(RECORD.to_dict()).encode()], read_one_record, mutated_json, runs=160_000)
STUDIES = Target([study(None), study(result())], read_one_study, mutated_json, runs=100_000)
PROBE = Target([findings()], read_findings, mutated_json, runs=60_000)
SENSITIVITY = Target([json.dumps(TABLES).encode()], read_tables, mutated_json, runs=60_000)
JOURNAL = Target([journal()], read_journal, mutated_json, runs=60_000)
