"""What was measured, and the limits in the same words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

from autocompress.errors import BudgetError
from autocompress.plain import from_fields


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds, and its ratio to the reference timed in the same rounds.

    Attributes:
        ratio, ratio_low, ratio_high: ratio of the percentile to the reference's, and its 95 % interval.
        rounds, openings: how often all files were timed, and how often they were opened for that.
        device: processor and machine type.
        percentile: the percentile of the calls' times that counts.
        percentile_ms: its milliseconds; None: those of the median.
        missed: share of the calls that took longer than `budget.latency_ms`; None: there is no such limit.
        wander: share by which the reference's time wandered during the measurement; 0: it did not.
        environment: `id` of the environment (`autocompress.measuring.fingerprint`) that it was measured in; empty: not told.
        load: processes that wanted to run, mean of a minute; None: not known.
    """

    median_ms: float
    p95_ms: float
    reference_median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    device: str
    openings: int = 1
    percentile: float = 50.0
    percentile_ms: float | None = None
    missed: float | None = None
    wander: float = 0.0
    environment: str = ""
    load: float | None = None

    @property
    def ms(self) -> float:
        """Milliseconds of the percentile that counts."""
        return self.median_ms if self.percentile_ms is None else self.percentile_ms

    @property
    def ms_high(self) -> float:
        """Upper end of its interval: the ratio's, since what moves both files alike is the machine, not the file."""
        return self.ms * self.ratio_high / self.ratio

    @property
    def resolution(self) -> float:
        """Of a file against itself: the relative difference that its interval holds."""
        return max(self.ratio_high - 1, 1 - self.ratio_low)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the measurement."""
        return (f"the machine's speed wandered by {self.wander:.0%} while latency was timed",) if self.wander else ()


@dataclass(frozen=True)
class Footprint:
    """What a file costs a process that loads it and runs it once: medians of fresh processes, the file in the page cache.

    Attributes:
        memory_bytes: how far the peak of the resident memory rises above that of the process with the runtime imported; None:
            the system does not tell.
        process_bytes: the peak itself, interpreter and runtime included.
        load_ms: until the file is ready to run, the first time in a process.
        reload_ms: the same again, later in the process.
        first_inference_ms: the first one, during which the runtime allocates.
    """

    memory_bytes: int | None
    process_bytes: int | None
    load_ms: float
    reload_ms: float
    first_inference_ms: float

    @property
    def figures(self) -> dict[str, Any]:
        """The fields of a `Measurement` that it gives."""
        return {"footprint": self, "memory_bytes": self.memory_bytes, "load_ms": self.load_ms}


@dataclass(frozen=True)
class Energy:
    """Energy of one inference, measured; `joules` None with the reason where no counter can be read."""

    joules: float | None
    reason: str = ""


@dataclass(frozen=True)
class Measurement:
    """Figures of one file. Ratios and the drop are against the FP32 file; None means that it was not measured.

    `accuracy` is the value of the task's metric on `images` examples; `accuracy_drop` is the FP32 file's value on the very
    same examples minus it, in the metric's own unit (of a share such as top-1 accuracy, 0.01 is one point); `divergence` is the
    mean distance of the outputs from FP32's on them (`autocompress.accuracy.distance.output_divergence`);
    `accuracy_drop_spread` is the standard error of the drop; `memory_bytes` and `load_ms` are those of the `footprint`.
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
    memory_bytes: int | None = None
    load_ms: float | None = None
    footprint: Footprint | None = None
    energy: Energy | None = None

    @property
    def at_most(self) -> Measurement:
        """The same with latencies at the upper ends of their intervals."""
        if self.latency is None:
            return self
        return replace(self, latency_ms=self.latency.ms_high, latency_ratio=self.latency.ratio_high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Inverse of `to_dict`.

        Raises:
            ValueError: the mapping is no measurement.
        """
        return from_fields(cls, values)


@dataclass(frozen=True)
class Budget:
    """Upper limits; None means no limit. Ratios are against the FP32 file in the same runtime.

    `accuracy_drop` is absolute and in the metric's own unit: a fraction for shares (0.01 is one point of accuracy), nats for
    `kl`, squared units of the target for `squared_error`.

    Latencies and their ratios are of `latency_percentile` of the times of single inferences: 50 is the median, 95 is for use
    in real time.

    Raises:
        BudgetError: a limit is no number, zero, negative or not finite (`accuracy_drop` may be zero), or the percentile is
            below 50 or not below 100.
    """

    size_bytes: float | None = None
    size_ratio: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    accuracy_drop: float | None = None
    memory_bytes: float | None = None
    load_ms: float | None = None
    latency_percentile: float = 50.0

    def __post_init__(self) -> None:
        if not _is_number(self.latency_percentile) or not 50 <= self.latency_percentile < 100:
            raise BudgetError(
                f"budget.latency_percentile={self.latency_percentile}: expected 50 (median) or more, below 100; for example 95"
            )
        for name, limit in self.limits().items():
            least = 0.0 if name == "accuracy_drop" else math.ulp(0.0)
            if not _is_number(limit) or limit < least:
                raise BudgetError(f"budget.{name}={limit}: expected a number above zero; leave it out (null) for no limit")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "latency_percentile"}
        return {name: limit for name, limit in values.items() if limit is not None}

    def unmeasured(self, measurement: Measurement) -> list[str]:
        """The limits on figures that the measurement does not have."""
        return [name for name in self.limits() if getattr(measurement, name) is None]

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


def _is_number(value: object) -> bool:
    """Whether it is a finite number, of Python or numpy, that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


NO_LIMITS = Budget()
