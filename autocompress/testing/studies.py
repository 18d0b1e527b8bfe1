"""A study, its trials and its result, made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.network.exporting import OPSET
from autocompress.policy import LayerPolicy, Policy
from autocompress.record import Final, Gate, LayerRow, SearchResult, State, Status, StudyContext, TrialRecord
from autocompress.testing.convolution_file import write_convolution


def make_study(folder: Path, metric: str = "accuracy", percent: bool = True) -> StudyContext:
    """A study whose FP32 file exists, below `folder`."""
    study = folder / "study"
    study.mkdir(parents=True, exist_ok=True)
    write_convolution(study / "fp32.onnx", integer=False)
    return StudyContext(
        id="ab" * 16,
        name="net-accuracy-01234567",
        model="net",
        data="0123",
        target="runtime",
        metric=metric,
        device="a processor",
        objective="accuracy",
        budget=Budget(size_ratio=0.5),
        folder=study,
        baseline=_measured(1.0, 0.0),
        reference=Artifact.of(study / "fp32.onnx", "onnx"),
        versions={"runtime": "runtime 1.0", "autocompress": "0.1.0"},
        config={"search": {"trials": 3}},
        percent=percent,
        environment={"id": "0123abcd", "device": "a processor", "flags": ["avx2"], "governor": None, "threads": 1, "load": 0.5},
        self_check=Latency(2.0, 2.2, 2.0, 1.001, 0.996, 1.006, 40, "a processor"),
    )


def _measured(ratio: float, drop: float) -> Measurement:
    timed = Latency(2.0 * ratio, 2.2 * ratio, 2.0, ratio, 0.99 * ratio, 1.01 * ratio, 20, "a processor")
    latency = dataclasses.replace(timed, environment="0123abcd", load=0.5)
    figures: dict[str, Any] = {"latency_ms": 2.0 * ratio, "latency_ratio": ratio, "accuracy": 0.9 - drop, "accuracy_drop": drop}
    return Measurement(size_bytes=int(1000 * ratio), size_ratio=ratio, images=100, latency=latency, **figures)


def make_records(study: StudyContext) -> list[TrialRecord]:
    """Three finished trials: one that was measured, one that was too large, one that failed."""
    policy = Policy({"conv": LayerPolicy("int8", 8)})
    row = LayerRow("conv", "conv2d", 288, 1000, "int8", 8, "", 0.0, "int8", 288, -1.0, 1.0, 0.0)
    large = Measurement(size_bytes=700, size_ratio=0.7)
    ends: list[tuple[State, Gate, str, Measurement]] = [
        ("complete", "done", "", _measured(0.4, 0.01)),
        ("pruned", "size", "size_ratio 0.7 exceeds the budget 0.5", large),
        ("failed", "build", "CheckError: odd", Measurement()),
    ]
    return [
        TrialRecord(number, "trial", state, gate, reason, policy, figures, study.budget.violations(figures), "cd" * 32, (row,))
        for number, (state, gate, reason, figures) in enumerate(ends)
    ]


def make_result(study: StudyContext, records: Sequence[TrialRecord], status: Status = "feasible") -> SearchResult:
    """The answer of the study: the first trial's file, which exists below the study's folder."""
    path = study.folder / "best" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    write_convolution(path, integer=True)
    return SearchResult(
        status=status,
        objective=study.objective,
        budget=study.budget,
        baseline=Final(study.reference, study.baseline, (0.85, 0.95)),
        best=Final(Artifact.of(path, "onnx"), _measured(0.4, 0.01), (0.84, 0.94)),
        policy=records[0].policy if records else Policy(),
        best_trial=0 if records else None,
        drop=0.01,
        drop_ci=(0.0, 0.02),
        drop_upper=0.018,
        selection_gap=0.0,
        binding_constraint=None,
        records=list(records),
        front=[0] if records else [],
        seconds=10.0,
        folder=study.folder,
        versions=study.versions,
        device=study.device,
        minimum_runtime={"opset": OPSET},
        reasons=["a reason"],
        quality=study.quality,
        environment=study.environment,
        self_check=study.self_check,
    )
