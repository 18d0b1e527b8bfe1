"""What was measured, and the limits in the same words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from autocompress.errors import BudgetError


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds, and its ratio to the reference timed in the same rounds.

    `ratio_low` and `ratio_high` bound the ratio's median with 95 % bootstrap confidence.
    """

    median_ms: float
    p95_ms: float
    reference_median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    device: str


@dataclass(frozen=True)
class Measurement:
    """Figures of one file. Ratios and the drop are against the FP32 file; None means that it was not measured.

    `accuracy` is the value of the task's metric on `images` examples; `accuracy_drop` is the FP32 file's value on the very
    same examples minus it, in the metric's own unit (of a share such as top-1 accuracy, 0.01 is one point); `divergence` is the
    mean distance of the outputs from FP32's on them (`autocompress.distance.output_divergence`); `accuracy_drop_spread` is the
    standard error of the drop.
    """

    size_bytes: int | None = None
    size_ratio: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    images: int = 0
    latency: Latency | None = None
    divergence: float | None = None
    accuracy_drop_spread: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """Inverse of `to_dict`."""
        latency = values.get("latency")
        return cls(**{**values, "latency": Latency(**latency) if latency else None})


@dataclass(frozen=True)
class Budget:
    """Upper limits; None means no limit. Ratios are against the FP32 file in the same runtime.

    `accuracy_drop` is absolute and in the metric's own unit: a fraction for shares (0.01 is one point of accuracy), nats for
    `kl`, squared units of the target for `squared_error`.

    Raises:
        BudgetError: a limit is zero, negative or not finite (`accuracy_drop` may be zero).
    """

    size_bytes: float | None = None
    size_ratio: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            least = 0.0 if name == "accuracy_drop" else math.ulp(0.0)
            if not math.isfinite(limit) or limit < least:
                raise BudgetError(f"budget.{name}={limit}: expected a number above zero; leave it out (null) for no limit")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) is not None}

    def violations(self, measurement: Measurement) -> dict[str, float]:
        """Normalised excess over each set limit: at most 0 is within; 0.1 is ten per cent over.

        A figure that was not measured counts as 0. A drop is normalised by the limit, but at least by 0.01 (one point of a
        share), so that a limit of zero stays finite.
        """
        return {name: self._violation(getattr(measurement, name), name, limit) for name, limit in self.limits().items()}

    @staticmethod
    def _violation(value: float | None, name: str, limit: float) -> float:
        if value is None:
            return 0.0
        unit = max(limit, 0.01) if name == "accuracy_drop" else limit
        return (value - limit) / unit
