"""A study as it lies in its folder: for whoever looks at it when the process that searched is gone, or still at it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
import yaml

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Energy, Footprint, Latency, Measurement
from autocompress.changes import Changes
from autocompress.class_drops import ClassDrop
from autocompress.errors import AutocompressError, ConfigError
from autocompress.policy import Policy, load_policy
from autocompress.quality import Quality
from autocompress.record import DIRECTIONS, BindingConstraint, Final, MaskOverlap, SearchResult, StudyContext, TrialRecord
from autocompress.selection import nearest, pareto_front, ranked
from autocompress.storage import FILE, Storage, StudySettings, opened_storage
from autocompress.study import IDENTITY, stored_records

STUDY = "study.json"
RESULT = "result.json"
UNKNOWN = "unknown"
DEVIATES = 1.96
"""Standard errors that an interval of 95 % reaches to each side."""


def write_context(study: StudyContext) -> Path:
    """Write study.json when a search starts, so that a killed one is known by more than its trials."""
    plain = asdict(study)
    plain["folder"], plain["reference"]["path"] = None, study.reference.path.name
    path = study.folder / STUDY
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps({**plain, "overrides": overrides(study.folder)}, indent=1, default=_plain) + "\n", encoding="utf-8"
    )
    partial.replace(path)
    return path


def _plain(value: object) -> object:
    return value.name if isinstance(value, Enum) else str(value)


def overrides(folder: Path) -> list[str] | None:
    """What the search in a folder was told on the command line; None: it was started from Python."""
    told = _json(folder / STUDY)
    if "overrides" in told:
        found: list[str] | None = told["overrides"]
        return found
    path = folder / ".hydra" / "overrides.yaml"
    return [str(word) for word in yaml.safe_load(path.read_text(encoding="utf-8")) or []] if path.is_file() else None


def read_study(folder: Path) -> tuple[StudyContext, SearchResult]:
    """What is known of the study that was last searched in a folder, finished or not.

    Raises:
        ConfigError: no study lies there, or it cannot be read.
    """
    saved, told = _json(folder / STUDY), _json(folder / RESULT)
    if not saved and not (folder / FILE).is_file():
        raise ConfigError(f"folder {folder}: no study lies there; expected the output folder of a search, with {FILE}")
    try:
        return _read(folder, saved, told)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, AutocompressError):
            raise
        raise ConfigError(
            f"folder {folder}: the study cannot be read ({error!r}); was it written by another version?"
        ) from error


def _read(folder: Path, saved: dict[str, Any], told: dict[str, Any]) -> tuple[StudyContext, SearchResult]:
    with opened_storage(StudySettings(_address(saved)), folder) as storage:
        study = _last_study(storage, saved.get("name"), told)
        records = stored_records(study) if study is not None else []
    context = _context(folder, saved) if saved else _gathered(folder, study, records, told)
    belongs = told and (told["objective"], told["budget"]) == (context.objective, context.budget.limits())
    return context, _result(folder, context, told, records) if belongs else unfinished(context, records)


def _json(path: Path) -> dict[str, Any]:
    """Empty: there is no such file."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _address(saved: Mapping[str, Any]) -> str | None:
    address: str | None = saved.get("config", {}).get("study", {}).get("storage")
    return address


def _last_study(storage: Storage, name: str | None, told: Mapping[str, Any]) -> optuna.Study | None:
    """The named one; else the one that the result is of; else the one that was at work last."""
    summaries = optuna.get_all_study_summaries(storage.rdb, include_best_trial=False)
    limits = json.dumps(told.get("budget"), sort_keys=True)
    ofs = [
        (s.study_name == name, s.user_attrs.get(IDENTITY, {}).get("budget") == limits, str(s.datetime_start), s.study_name)
        for s in summaries
    ]
    return optuna.load_study(study_name=max(ofs)[-1], storage=storage.rdb) if ofs else None


def _context(folder: Path, saved: Mapping[str, Any]) -> StudyContext:
    parts: dict[str, Any] = {
        "budget": Budget(**saved["budget"]),
        "baseline": Measurement.from_dict(saved["baseline"]),
        "reference": Artifact(**{**saved["reference"], "path": folder / saved["reference"]["path"]}),
        "self_check": Latency(**saved["self_check"]) if saved["self_check"] else None,
        "folder": folder,
    }
    names = {field.name for field in fields(StudyContext)}
    return StudyContext(**{**{name: value for name, value in saved.items() if name in names}, **parts})


def _gathered(
    folder: Path, study: optuna.Study | None, records: Sequence[TrialRecord], told: Mapping[str, Any]
) -> StudyContext:
    """Of a study from before study.json was written: what its storage and its result tell."""
    identity = dict(study.user_attrs.get(IDENTITY, {})) if study is not None else {}
    name = study.study_name if study is not None else folder.name
    device = json.loads(identity.get("device", "{}"))
    named = next((objective for objective in DIRECTIONS if f"-{objective}-" in name), "accuracy")
    objective: Any = told.get("objective") or identity.get("objective") or named
    metric = told.get("metric", "accuracy")
    reference = folder / "fp32.onnx"
    return StudyContext(
        id="",
        name=name,
        model=identity.get("name", folder.name),
        data=identity.get("data", UNKNOWN),
        target=UNKNOWN,
        metric=metric,
        percent=_is_share(records),
        device=told.get("device") or device.get("device", UNKNOWN),
        objective=objective,
        budget=Budget(**(told.get("budget") or json.loads(identity.get("budget", "{}")))),
        folder=folder,
        baseline=_baseline(records, told),
        reference=Artifact.of(reference, "onnx") if reference.is_file() else Artifact(reference, "onnx", 0, ""),
        versions=told.get("versions") or {"runtime": device.get("runtime", UNKNOWN)},
        environment=told.get("environment") or {},
        self_check=_self_check(told),
    )


def _is_share(records: Sequence[TrialRecord]) -> bool:
    values = [record.measurement.accuracy for record in records if record.measurement.accuracy is not None]
    return all(0 <= value <= 1 for value in values)


def _baseline(records: Sequence[TrialRecord], told: Mapping[str, Any]) -> Measurement:
    """FP32 on the search set: what the ratios and drops of a complete trial are against."""
    complete = next((record.measurement for record in records if record.state == "complete"), None)
    if complete is None:
        return _final(told["baseline"], Path()).measurement if told else Measurement()
    size, latency = complete.size_bytes or 0, complete.latency_ms or 0.0
    return Measurement(
        size_bytes=round(size / (complete.size_ratio or 1.0)),
        size_ratio=1.0,
        latency_ms=latency / (complete.latency_ratio or 1.0),
        latency_ratio=1.0,
        accuracy=(complete.accuracy or 0.0) + (complete.accuracy_drop or 0.0),
        accuracy_drop=0.0,
        images=complete.images,
    )


def unfinished(study: StudyContext, records: Sequence[TrialRecord]) -> SearchResult:
    """As far as a search came that has not written its result: the best trial, on the search set."""
    chosen = next(iter([*ranked(records, study.objective), *nearest(records, study.objective)]), None)
    figures = study.baseline if chosen is None else chosen.measurement
    spread, drop = DEVIATES * (figures.accuracy_drop_spread or math.nan), figures.accuracy_drop or 0.0
    unknown = (math.nan, math.nan)
    best = (
        study.reference
        if chosen is None
        else Artifact(study.folder / "candidates", "onnx", figures.size_bytes or 0, chosen.sha256)
    )
    return SearchResult(
        status="interrupted",
        objective=study.objective,
        budget=study.budget,
        baseline=Final(study.reference, study.baseline, unknown),
        best=Final(best, figures, unknown),
        policy=Policy() if chosen is None else chosen.policy,
        best_trial=None if chosen is None else chosen.number,
        drop=drop,
        drop_ci=(drop - spread, drop + spread),
        drop_upper=math.nan,
        selection_gap=math.nan,
        binding_constraint=None,
        records=records,
        front=[record.number for record in pareto_front(records)],
        seconds=sum(sum(record.seconds.values()) for record in records if record.is_measured),
        folder=study.folder,
        versions=study.versions,
        device=study.device,
        minimum_runtime={},
        reasons=[
            "the search has not ended: these are the figures of its trials on the search set; the same command resumes it"
        ],
        quality=study.quality,
        environment=study.environment,
        self_check=study.self_check,
    )


def _result(folder: Path, study: StudyContext, told: Mapping[str, Any], records: Sequence[TrialRecord]) -> SearchResult:
    """The inverse of `autocompress.report.result_dict`, as far as that goes."""
    best, policy = told["best"], folder / "best" / "policy.yaml"
    constraint, drop = told.get("binding_constraint"), told["drop"]
    return SearchResult(
        status=told["status"],
        objective=told["objective"],
        budget=study.budget,
        baseline=_final(told["baseline"], study.reference.path),
        best=_final(best, folder / best["path"]),
        policy=load_policy(policy) if policy.is_file() else Policy(),
        best_trial=best["trial"],
        drop=drop,
        drop_ci=tuple(told["drop_ci"]),
        drop_upper=told.get("drop_upper", math.nan),
        drop_p=told.get("drop_p", 1.0),
        selection_gap=told["selection_gap"],
        binding_constraint=BindingConstraint(**constraint) if constraint else None,
        records=records,
        front=told["pareto_front"],
        seconds=told["seconds"],
        folder=folder,
        versions=told["versions"],
        device=told["device"],
        minimum_runtime=told.get("minimum_runtime", {}),
        reasons=told["reasons"],
        quality=Quality(study.metric, study.percent),
        mask_overlap={layer: MaskOverlap(**found) for layer, found in told.get("mask_overlap", {}).items()},
        changes=Changes(classes=[ClassDrop(**found) for found in told.get("worst_classes", [])]),
        predicted=told.get("predicted", {}),
        environment=told.get("environment") or {},
        self_check=_self_check(told),
        host_accuracy=told.get("accuracy_host"),
        latency_predictions={int(number): ratio for number, ratio in told.get("latency_predictions", {}).items()},
    )


def _self_check(told: Mapping[str, Any]) -> Latency | None:
    check = told.get("self_check")
    if not check:
        return None
    low, high = check["ratio_ci"]
    return Latency(0.0, 0.0, 0.0, check["ratio"], low, high, 0, "")


def _final(told: Mapping[str, Any], path: Path) -> Final:
    """The inverse of `autocompress.report.final_dict`; what that leaves out is 0."""
    artifact = Artifact(path, "onnx", told.get("size_bytes") or 0, told.get("sha256", ""))
    return Final(artifact, _figures(told), tuple(told["accuracy_ci"]))


def _figures(told: Mapping[str, Any]) -> Measurement:
    median, ratio = told.get("latency_ms_median"), told.get("latency_ratio")
    latency = _latency(told, median, ratio) if median and ratio else None
    process = [told.get(name) for name in ("process_bytes", "reload_ms", "first_inference_ms")]
    footprint = (
        Footprint(told.get("memory_bytes"), process[0], told["load_ms"], process[1] or 0, process[2] or 0)
        if told.get("load_ms")
        else None
    )
    return Measurement(
        size_bytes=told.get("size_bytes"),
        size_ratio=told.get("size_ratio"),
        latency_ms=latency.ms if latency else None,
        latency_ratio=ratio,
        accuracy=told.get("accuracy"),
        images=told.get("images", 0),
        divergence=told.get("divergence"),
        latency=latency,
        memory_bytes=told.get("memory_bytes"),
        load_ms=told.get("load_ms"),
        footprint=footprint,
        energy=Energy(told.get("energy_joules"), told.get("energy_reason") or "") if "energy_joules" in told else None,
    )


def _latency(told: Mapping[str, Any], median: float, ratio: float) -> Latency:
    low, high = told.get("latency_ratio_ci") or (ratio, ratio)
    percentile = told.get("latency_percentile") or 50.0
    return Latency(
        median,
        told.get("latency_ms_p95") or median,
        median / ratio,
        ratio,
        low,
        high,
        0,
        "",
        percentile=percentile,
        percentile_ms=told.get("latency_ms"),
        missed=told.get("deadline_missed"),
        environment=told.get("environment") or "",
        load=told.get("load"),
    )
