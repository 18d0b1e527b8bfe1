"""What happened: the study, each trial, and the result. Values only; trackers and reports read these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autocompress.accuracy.changes import Changes
from autocompress.artifact import Artifact
from autocompress.budget import Budget, Latency, Measurement
from autocompress.data_set import DataSet
from autocompress.plain import from_fields
from autocompress.policy import Policy
from autocompress.quality import Quality

State = Literal["complete", "pruned", "failed"]
Gate = Literal["build", "size", "check", "footprint", "latency", "accuracy", "done"]
Kind = Literal["baseline", "seed", "trial", "repeated", "imported", "final"]
Status = Literal["feasible", "unproven", "infeasible", "not_worth_it", "interrupted"]
Objective = Literal["accuracy", "latency", "size", "pareto"]

DIRECTIONS: dict[Objective, list[Literal["minimize", "maximize"]]] = {
    "accuracy": ["maximize"],
    "latency": ["minimize"],
    "size": ["minimize"],
    "pareto": ["maximize", "minimize", "minimize"],
}


def objective_values(objective: Objective, figures: Measurement) -> list[float]:
    """What Optuna is told of a complete measurement, in the directions of `DIRECTIONS`."""
    assert figures.accuracy is not None and figures.latency_ratio is not None and figures.size_bytes is not None
    accuracy, latency, size = figures.accuracy, figures.latency_ratio, float(figures.size_bytes)
    values = {"accuracy": [accuracy], "latency": [latency], "size": [size], "pareto": [accuracy, latency, size]}
    return values[objective]


@dataclass(frozen=True)
class LayerRow:
    """One line of the per-layer table of a candidate; the weight's figures are of FP32.

    Attributes:
        sparsity: share of a pruned layer's stored weights that are 0, those that rounding made 0 among them; 0 where no single
            weights were removed.
        structure: how single weights were removed: `unstructured` or `n:m`; empty: not at all.
        activation: how the layer computes when its weight has codes: `static`, `dynamic` or `float`; empty: it has none.
        observer: gives the range of its quantized input, where that is not the configured one.
    """

    layer: str
    kind: str
    parameters: int
    macs: int
    quantizer: str
    bits: int
    pruner: str
    sparsity: float
    encoding: str
    stored_bytes: int
    weight_minimum: float
    weight_maximum: float
    weight_mean: float
    structure: str = ""
    activation: str = ""
    observer: str = ""


@dataclass(frozen=True)
class StudyContext:
    """The fixed facts of one study.

    Attributes:
        id: unique in the world; stays the same when the study is resumed.
        name: name of the Optuna study, for people.
        metric: name of the metric that `accuracy` figures are values of.
        percent: whether its values are shares, 0 to 1.
        model, data, target: what was compressed, on what, for what.
        folder: where results are written.
        baseline: the FP32 file on the search set, latency against itself.
        versions: distribution to version (runtime, plugins, torch, optuna, ...).
        config: the settings as plain values, empty when called from Python.
        environment: what latencies depend on besides the files: `autocompress.measuring.fingerprint`.
        self_check: FP32's latency timed against itself.
        data_sets: what the sets are, by use: `calibration`, `search`, `report`.
        example: a file (.npy) with one input, shape (1, ...); None: there is none.
    """

    id: str
    name: str
    model: str
    data: str
    target: str
    metric: str
    device: str
    objective: Objective
    budget: Budget
    folder: Path
    baseline: Measurement
    reference: Artifact
    versions: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    percent: bool = True
    environment: Mapping[str, Any] = field(default_factory=dict)
    self_check: Latency | None = None
    data_sets: Mapping[str, DataSet] = field(default_factory=dict)
    example: Path | None = None

    @property
    def quality(self) -> Quality:
        """How values of the metric are written."""
        return Quality(self.metric, self.percent)


@dataclass(frozen=True)
class TrialRecord:
    """What happened in one trial, failures included.

    Attributes:
        kind: `seed` was queued, `trial` proposed by the sampler; `repeated`: the same policy as an earlier trial, whose figures
            these are; `imported`: measured for another budget or objective and judged again.
        gate: the stage at which it ended; "done" means that everything was measured.
        reason: why it ended early, and where figures come from that this trial did not measure; else empty.
        violations: normalised excess over each limit, at most 0 is within.
        warnings: what is odd about the file though it was scored, for example a layer that did not become integer.
        seconds: stage to wall seconds.
        given_up: whether it took too long or its process died twice: a policy that is not tried again.
    """

    number: int
    kind: Kind
    state: State
    gate: Gate
    reason: str
    policy: Policy
    measurement: Measurement
    violations: Mapping[str, float]
    sha256: str = ""
    layers: Sequence[LayerRow] = ()
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    given_up: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether this trial built and measured a file itself, or tried to."""
        return self.kind not in ("repeated", "imported")

    @property
    def feasible(self) -> bool:
        """Whether everything was measured and every limit is met."""
        return self.state == "complete" and all(excess <= 0 for excess in self.violations.values())

    @property
    def violation(self) -> float:
        """Sum of the excesses over the limits."""
        return sum(max(0.0, excess) for excess in self.violations.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(replace(self, policy=Policy()))
        return {**plain, "policy": self.policy.to_dict(), "layers": [asdict(row) for row in self.layers]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialRecord:
        """Inverse of `to_dict`.

        Raises:
            ValueError: the mapping is no record.
        """
        return from_fields(cls, values)


@dataclass(frozen=True)
class Final:
    """A file measured on the report set.

    `accuracy_ci` is the 95 % interval of the accuracy itself.
    """

    artifact: Artifact
    measurement: Measurement
    accuracy_ci: tuple[float, float]


@dataclass(frozen=True)
class MaskOverlap:
    """How far the masks of two independent runs agree on a layer.

    Attributes:
        jaccard: weights that stay in both, as a share of those that stay in either.
        by_chance: the same for random masks that keep as many.
    """

    jaccard: float
    by_chance: float


@dataclass(frozen=True)
class BindingConstraint:
    """The limit that nothing could meet, and the smallest value of it that some candidate reached."""

    name: str
    limit: float
    smallest_met: float


@dataclass(frozen=True)
class SearchResult:
    """The answer of a search.

    Attributes:
        status: `feasible`: within the budget, latencies with their whole intervals, accuracy shown on the report set;
            `unproven`: within as far as measured, but not for sure; `infeasible`: nothing fits, the nearest is returned;
            `not_worth_it`: FP32 ships; `interrupted`: stopped by the user, best so far.
        drop, drop_ci: accuracy of FP32 minus best on the report set, paired, with its 95 % interval.
        drop_upper: upper one-sided 90 % bound of the drop.
        drop_p: two-sided p of the paired test that FP32 and best are equally good on the report set.
        selection_gap: accuracy of best on the search set minus that on the report set.
        reasons: one sentence each, for a person.
        quality: the metric that accuracies are values of.
        mask_overlap: layer that loses weights to how far its masks from disjoint halves of the calibration data agree.
        changes: which examples and classes of the report set changed.
        predicted: what the search's model said of best before it was measured: `divergence`, `size_ratio`, `latency_ratio`;
            empty when there was none.
        latency_predictions: trial number to the latency ratio as predicted from all other measurements; empty: too few of them.
        environment, self_check: as in `StudyContext`.
        host_accuracy: accuracy of best on the report set in the same runtime on the machine that searched; None where that is
            the target's own.
    """

    status: Status
    objective: Objective
    budget: Budget
    baseline: Final
    best: Final
    policy: Policy
    best_trial: int | None
    drop: float
    drop_ci: tuple[float, float]
    drop_upper: float
    selection_gap: float
    binding_constraint: BindingConstraint | None
    records: Sequence[TrialRecord]
    front: Sequence[int]
    seconds: float
    folder: Path
    versions: Mapping[str, str]
    device: str
    minimum_runtime: Mapping[str, Any]
    reasons: Sequence[str] = ()
    quality: Quality = field(default_factory=Quality)
    mask_overlap: Mapping[str, MaskOverlap] = field(default_factory=dict)
    drop_p: float = 1.0
    changes: Changes = field(default_factory=Changes)
    predicted: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    self_check: Latency | None = None
    host_accuracy: float | None = None
    latency_predictions: Mapping[int, float] = field(default_factory=dict)
