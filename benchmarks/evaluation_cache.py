"""Accuracy of files by their SHA-256, kept on disk: what one arm or seed of a comparison measured, no other measures again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from autocompress.budget import Latency, Measurement
from autocompress.errors import AutocompressError
from autocompress.policy import Policy
from autocompress.trials.trial import Bench
from benchmarks.busy_clock import busy_seconds

ModelledLatency = Callable[[Policy], Latency]
"""Latency of a policy by a model: nothing is timed here."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a file.

    Attributes:
        accuracy, divergence: on the search set; None: the file does not run.
        seconds: that building and evaluating it took when it was measured.
    """

    sha256: str
    size_bytes: int
    accuracy: float | None
    divergence: float | None
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The figures of a policy, the hash of its file, and what they cost when they were first measured."""

    measurement: Measurement
    sha256: str
    seconds: float


class EvaluationCache:
    """Evaluates policies on the search set; results are only ever appended, so a kill costs one line.

    Args:
        path: where they are kept; another search set needs another path.
    """

    def __init__(self, bench: Bench, path: Path, latency: ModelledLatency) -> None:
        self._bench, self._path, self._latency = bench, path, latency
        self._by_policy: dict[str, Evaluation] = {}
        self._by_file = _read(path)

    def measure(self, policy: Policy) -> Evaluated:
        """Bytes of the built file, its accuracy, and the modelled latency."""
        if policy.digest not in self._by_policy:
            self._by_policy[policy.digest] = self._build(policy)
        found = self._by_policy[policy.digest]
        baseline = self._bench.evaluator.metric.value(self._bench.evaluator.reference_statistics("search"))
        latency = self._latency(policy)
        measurement = Measurement(
            size_bytes=found.size_bytes,
            size_ratio=found.size_bytes / len(self._bench.graph.data),
            latency_ms=latency.median_ms,
            latency_ratio=latency.ratio,
            latency=latency,
            accuracy=found.accuracy,
            accuracy_drop=None if found.accuracy is None else baseline - found.accuracy,
            images=len(self._bench.evaluator.targets["search"]),
            divergence=found.divergence,
        )
        return Evaluated(measurement, found.sha256, found.seconds)

    def _build(self, policy: Policy) -> Evaluation:
        path, start = self._bench.evaluator.folder / "cached.onnx", busy_seconds()
        artifact = self._bench.build(policy, path).artifact
        if artifact.sha256 not in self._by_file:
            accuracy, divergence = self._evaluate(path)
            seconds = busy_seconds() - start
            self._keep(Evaluation(artifact.sha256, artifact.size_bytes, accuracy, divergence, seconds))
        return self._by_file[artifact.sha256]

    def _evaluate(self, path: Path) -> tuple[float | None, float | None]:
        evaluator, count = self._bench.evaluator, len(self._bench.evaluator.targets["search"])
        try:
            outputs = evaluator.outputs(path, "search", 0, count)
        except AutocompressError:
            return None, None
        divergence = float(evaluator.divergence(outputs, "search", 0, count).mean())
        return evaluator.metric.value(evaluator.score(outputs, "search", 0, count)), divergence

    def _keep(self, evaluation: Evaluation) -> None:
        self._by_file[evaluation.sha256] = evaluation
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(evaluation)) + "\n")


def _read(path: Path) -> dict[str, Evaluation]:
    """Whole lines; one that a kill cut off is ended, so that the next does not continue it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    found: dict[str, Evaluation] = {}
    for line in text.splitlines():
        try:
            evaluation = Evaluation(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        found[evaluation.sha256] = evaluation
    return found
