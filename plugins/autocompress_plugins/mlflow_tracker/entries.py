"""What is written on a run: its name, metrics, params, tags and the table of layers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, get_args

from autocompress import Policy, TrialRecord, trial_name
from autocompress.policy import FLOAT_BITS
from autocompress.record import LayerRow, State

if TYPE_CHECKING:
    from autocompress import Quality, SearchResult, StudyContext
    from autocompress.reporting.curves import Reached

BASELINE, FINAL = "baseline", "final"
SEARCH_SECONDS = "seconds/search"
LAYER_TABLE = "layers.json"
_TAG_CHARACTERS = 5000
_FIRST_COLUMNS = ("layer", "quantizer", "bits", "pruner", "sparsity", "stored_bytes")
_ENVIRONMENT = ("id", "governor", "threads", "cores", "load")
"""What differs from run to run; the rest is in result.json."""


def baseline_record(study: StudyContext) -> TrialRecord:
    """FP32, as if it were a trial."""
    violations = study.budget.violations(study.baseline)
    return TrialRecord(-1, "baseline", "complete", "done", "", Policy(), study.baseline, violations, study.reference.sha256)


def final_record(result: SearchResult) -> TrialRecord:
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


def key(record: TrialRecord) -> str:
    """What tells the children of a study apart."""
    return record.kind if record.kind in (BASELINE, FINAL) else str(record.number)


def run_name(record: TrialRecord, quality: Quality) -> str:
    """Sorts by trial and speaks: `t0042 4.7b s35 0.41x accuracy 88.1%` is number, bits, sparsity, latency and the metric."""
    name = trial_name(record, quality)
    return f"{record.kind} {name.partition(' ')[2]}" if record.kind in (BASELINE, FINAL) else name


def reached_metrics(reached: Reached) -> dict[str, float]:
    """What the study has come to with a trial: a point of the curves of its run."""
    found = {"best/front_hypervolume": reached.hypervolume}
    if reached.best is not None:
        figures = reached.best.measurement
        best = {"accuracy": figures.accuracy, "latency_ratio": figures.latency_ratio, "size_ratio": figures.size_ratio}
        found |= {f"best/{name}": value for name, value in best.items() if value is not None}
    return found


def _mean(layers: Sequence[LayerRow], column: str) -> float | None:
    """Mean over all weights."""
    parameters = sum(row.parameters for row in layers)
    return sum(getattr(row, column) * row.parameters for row in layers) / parameters if parameters else None


def metrics(record: TrialRecord) -> dict[str, float]:
    """Every figure of a trial, by section and unit."""
    measured = record.measurement
    latency: Mapping[str, Any] = asdict(measured.latency) if measured.latency else {}
    footprint: Mapping[str, Any] = asdict(measured.footprint) if measured.footprint else {}
    found: dict[str, float | None] = {
        "quality/accuracy": measured.accuracy,
        "quality/accuracy_drop": measured.accuracy_drop,
        "quality/divergence": measured.divergence,
        "quality/images": measured.images or None,
        "latency/median_ms": latency.get("median_ms"),
        "latency/p95_ms": latency.get("p95_ms"),
        "latency/ratio": measured.latency_ratio,
        "latency/ratio_low": latency.get("ratio_low"),
        "latency/ratio_high": latency.get("ratio_high"),
        "latency/deadline_missed": latency.get("missed"),
        "latency/load": latency.get("load"),
        "size/bytes": measured.size_bytes,
        "size/ratio": measured.size_ratio,
        "memory/bytes": measured.memory_bytes,
        "memory/process_bytes": footprint.get("process_bytes"),
        "load/ms": measured.load_ms,
        "load/reload_ms": footprint.get("reload_ms"),
        "load/first_inference_ms": footprint.get("first_inference_ms"),
        "energy/joules": measured.energy.joules if measured.energy else None,
        "weights/mean_bits": _mean(record.layers, "bits"),
        "weights/sparsity": _mean(record.layers, "sparsity"),
        "violation/total": record.violation if record.violations else None,
        **{f"violation/{name}": excess for name, excess in record.violations.items()},
        **{f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()},
    }
    return {key: float(value) for key, value in found.items() if value is not None}


def result_metrics(result: SearchResult) -> dict[str, float]:
    """The delivered file's figures under the names that its trial has, and what only a whole search has."""
    states = Counter[str](record.state for record in result.records if record.kind not in (BASELINE, FINAL))
    baseline = result.baseline.measurement
    found: dict[str, float | None] = {
        **metrics(final_record(result)),
        "quality/accuracy_drop": result.drop,
        "quality/accuracy_drop_low": result.drop_ci[0],
        "quality/accuracy_drop_high": result.drop_ci[1],
        "quality/accuracy_drop_p": result.drop_p,
        "quality/selection_gap": result.selection_gap,
        "fp32/accuracy": baseline.accuracy,
        "fp32/latency_median_ms": baseline.latency.median_ms if baseline.latency else None,
        "fp32/latency_resolution": result.self_check.resolution if result.self_check else None,
        "fp32/size_bytes": baseline.size_bytes,
        "fp32/memory_bytes": baseline.memory_bytes,
        "fp32/load_ms": baseline.load_ms,
        "fp32/energy_joules": baseline.energy.joules if baseline.energy else None,
        SEARCH_SECONDS: result.seconds,
        **{f"trials/{state}": states[state] for state in get_args(State)},
    }
    return {key: float(value) for key, value in found.items() if value is not None}


def study_params(study: StudyContext) -> dict[str, str]:
    """What was asked for."""
    facts = {"model": study.model, "data": study.data, "target": study.target, "objective": study.objective}
    return {**facts, **{f"budget/{name}": f"{limit:g}" for name, limit in study.budget.limits().items()}}


def params(record: TrialRecord) -> dict[str, str]:
    """What was done, short enough for a column; the whole policy is an artifact."""
    layers: Sequence[Any] = record.layers or list(record.policy.layers.values())
    found = {
        "quantizers": _counts(layer.quantizer if layer.bits < FLOAT_BITS else "float" for layer in layers),
        "pruners": _counts(layer.pruner for layer in layers if layer.sparsity > 0),
        "channel_pruners": _counts(group.pruner for group in record.policy.channels.values() if group.sparsity > 0),
        "float_ops": str(sum(precision == "float" for precision in record.policy.ops.values())),
        "observers": _counts(record.policy.observers.values()),
        "policy": record.policy.digest,
    }
    return {key: value for key, value in found.items() if value}


def _counts(names: Iterable[str | None]) -> str:
    """`12 int8, 7 int4`, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def study_tags(study: StudyContext) -> dict[str, str]:
    """On each run, since MLflow's filters see only the run itself."""
    tags = {
        "study": study.name,
        "model": study.model,
        "data": study.data,
        "target": study.target,
        "objective": study.objective,
        "metric": study.metric,
        "device": study.device,
        "runtime": study.versions["runtime"],
        "environment": ", ".join(f"{name} {value}" for name, value in study.environment.items() if name in _ENVIRONMENT),
        "versions": ", ".join(f"{name} {version}" for name, version in study.versions.items() if name != "runtime"),
    }
    return {"mlflow.source.name": "autocompress", **_named(tags)}


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """What a child is and how it ended."""
    tags = {
        "trial": key(record),
        "kind": "failed" if record.state == "failed" else record.kind,
        "state": record.state,
        "gate": record.gate,
        "feasible": str(record.feasible).lower(),
        "reason": record.reason,
        "warnings": "; ".join(record.warnings),
        "sha256": record.sha256,
    }
    # What `mlflow.log_table` leaves on a run, so that MLflow shows the layers as a table.
    table = json.dumps([{"path": LAYER_TABLE, "type": "table"}])
    return {**_named(tags), "mlflow.loggedArtifacts": table} if record.layers else _named(tags)


def figure_tags(record: TrialRecord) -> dict[str, str]:
    """A trial's figures as text, because a model has no other place for them."""
    return _named({key: f"{value:.10g}" for key, value in metrics(record).items() if not key.startswith("seconds/")})


def result_tags(result: SearchResult, note: str, champion: str) -> dict[str, str]:
    """The answer, on the study's run; `champion` is the registered model's version, if it has one."""
    best = "FP32" if result.best_trial is None else str(result.best_trial)
    tags = _named({"status": result.status, "best_trial": best, "champion": champion})
    return {**tags, "mlflow.note.content": note[:_TAG_CHARACTERS]}


def result_digest(result: SearchResult) -> str:
    """Short hash of the answer: the same when the very same result is told again."""
    facts = [result.status, result.best_trial, result.best.artifact.sha256, result.policy.digest, result_metrics(result)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"autocompress.{key}": value[:_TAG_CHARACTERS] for key, value in tags.items() if value}


def layer_table(layers: Sequence[LayerRow]) -> dict[str, list[Any]]:
    """The form that `mlflow.log_table` writes and `mlflow.load_table` reads; what was done comes first."""
    columns = [*_FIRST_COLUMNS, *(field.name for field in fields(LayerRow) if field.name not in _FIRST_COLUMNS)]
    return {"columns": columns, "data": [[getattr(row, column) for column in columns] for row in layers]}
