"""What the capability probe found out about a device: figures, the verdicts that follow, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autocompress.guarding.whole_file import write_whole
from autocompress.plain import from_plain

Subject = Literal["layer", "op"]

SURE = 0.03
"""Share by which one file must be faster or slower than another, whole intervals apart, before a verdict says so."""

WRONG_STEPS = 1.5
"""Steps of an 8-bit output by which an integer layer may differ from exact arithmetic: requantization rounds once."""


@dataclass(frozen=True)
class Case:
    """One network at one shape, each figure against a reference file timed in the same rounds."""

    ratio: float
    ratio_low: float
    ratio_high: float
    size_ratio: float


FLOAT = Case(1.0, 1.0, 1.0, 1.0)
"""FP32 against itself."""


@dataclass(frozen=True)
class Finding:
    """One way of storing and computing.

    Attributes:
        subject: whether `name` is a kind of layer or an operator between layers.
        mode: of a layer `static`, `dynamic` or `float`; of an operator `integer`.
        encoding: of a layer's weight, for example `int8` or `sparse-int4`; of an operator empty.
        bits: of a stored weight; 0 for an operator.
        cases: against FP32, of an operator or a depthwise layer against float between the same integer layers; none where the
            file does not run.
        error: largest difference from exact integer arithmetic, in steps of an 8-bit output; None: not an integer layer.
        narrow_error: the same with weights of 7 bits, where `error` is too large.
    """

    subject: Subject
    name: str
    mode: str
    encoding: str
    bits: int
    cases: tuple[Case, ...]
    error: float | None = None
    narrow_error: float | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the runtime loses sums."""
        return self.error is not None and self.error > WRONG_STEPS

    @property
    def is_right_when_narrow(self) -> bool:
        """Whether weights of 7 bits mend that."""
        return self.narrow_error is not None and self.narrow_error <= WRONG_STEPS

    @property
    def against(self) -> tuple[Case, ...]:
        """The figures of what the cases are ratios to."""
        return (FLOAT,) * len(self.cases)

    @property
    def label(self) -> str:
        """Words for people: `INT4 conv2d`, `sparse INT8 linear, dynamic`, `Sigmoid in integers`."""
        if self.subject == "op":
            return f"{self.name} in integers"
        if not self.encoding:
            return self.name
        words = self.encoding.replace("-", " ").replace("int", "INT").replace("codebook", "codebook ")
        return f"{words} {self.name}, {'in ' if self.mode == 'float' else ''}{self.mode}"


def is_faster(cases: Sequence[Case], base: Sequence[Case]) -> bool:
    """Whether somewhere the time is less for sure."""
    return any(one.ratio_high < (1 - SURE) * other.ratio_low for one, other in zip(cases, base, strict=True))


def may_be_faster(cases: Sequence[Case], base: Sequence[Case]) -> bool:
    """Whether somewhere the time may be less by more than nothing to speak of."""
    return any(one.ratio_low < (1 - SURE) * other.ratio_high for one, other in zip(cases, base, strict=True))


def is_slower(cases: Sequence[Case], base: Sequence[Case]) -> bool:
    """Whether the time is more for sure, everywhere."""
    return all(one.ratio_low > (1 + SURE) * other.ratio_high for one, other in zip(cases, base, strict=True))


def is_smaller(cases: Sequence[Case], base: Sequence[Case]) -> bool:
    """Whether somewhere the file is smaller."""
    return any(one.size_ratio < (1 - SURE) * other.size_ratio for one, other in zip(cases, base, strict=True))


@dataclass(frozen=True)
class Findings:
    """All that is known of one device.

    Attributes:
        key: hash of what it depends on: device, runtime, target, its session module and the version of the lowering.
    """

    key: str
    device: str
    runtime: str
    rows: tuple[Finding, ...] = ()

    @classmethod
    def load(cls, path: Path, key: str) -> Findings | None:
        """Read a file; None: there is none, it is not such a file, or it is of another device or version."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = from_plain(cls, {**values, "rows": [_without_verdict(row) for row in values["rows"]]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        shapes = {len(row.cases) for row in found.rows if row.cases}
        return found if found.key == key and len(shapes) <= 1 else None

    def save(self, path: Path) -> None:
        """Write all rows with their verdicts, replacing the file as a whole."""
        rows = [{**asdict(row), "verdict": self.verdict(row)} for row in self.rows]
        write_whole(path, json.dumps({**asdict(self), "rows": rows}, indent=1) + "\n")

    def joined(self, rows: Iterable[Finding]) -> Findings:
        """With further rows; those of a subject that is known already stay as they are, so that verdicts do not change."""
        known = {(row.subject, row.name) for row in self.rows}
        return replace(self, rows=(*self.rows, *(row for row in rows if (row.subject, row.name) not in known)))

    def about(self, subject: Subject, name: str) -> tuple[Finding, ...]:
        """The rows of a kind of layer or an operator."""
        return tuple(row for row in self.rows if (row.subject, row.name) == (subject, name))

    def saturating(self) -> list[str]:
        """Kinds of layers whose integer sums are right with weights of 7 bits only."""
        return sorted({row.name for row in self.rows if row.is_wrong and row.is_right_when_narrow})

    def broken(self) -> set[tuple[str, str]]:
        """Kinds of layers and modes whose integer sums are wrong whatever the weights are."""
        return {(row.name, row.mode) for row in self.rows if row.is_wrong and not row.is_right_when_narrow}

    def base(self, row: Finding) -> tuple[str, tuple[Case, ...]]:
        """What a row is compared with: the dense codes of most bits computed alike, for those float; with its name."""
        rows = [other for other in self.about(row.subject, row.name) if other.cases and other.mode == row.mode]
        dense = [other for other in rows if other.encoding == f"int{other.bits}"]
        plain = max(dense, key=lambda other: other.bits, default=row)
        return ("float", row.against) if plain == row else (plain.encoding.upper(), plain.cases)

    def verdict(self, row: Finding) -> str:
        """What a row gains here, in a few words."""
        if not row.cases:
            return "does not run here"
        if row.is_wrong:
            return "wrong sums; right with 7-bit weights" if row.is_right_when_narrow else "wrong sums"
        name, base = self.base(row)
        slower = f"slower than {name} here" if is_slower(row.cases, base) else ""
        if is_faster(row.cases, base):
            return "time and size" if is_smaller(row.cases, base) else "time"
        if is_smaller(row.cases, base):
            return f"size only here{', ' if slower else ''}{slower}"
        return slower or "no gain here"

    def table(self) -> str:
        """All rows for a terminal."""
        lines = [f"{self.device}, {self.runtime}: time and bytes against FP32, smallest and largest network"]
        lines += [f"{row.label:<32} {_described(row):<44} {self.verdict(row)}" for row in self.rows]
        return "\n".join(lines)


def _without_verdict(row: dict[str, Any]) -> dict[str, Any]:
    """A verdict follows from the figures."""
    return {name: value for name, value in row.items() if name != "verdict"}


def _described(row: Finding) -> str:
    times = " ".join(f"{case.ratio:.2f}±{(case.ratio_high - case.ratio_low) / 2:.2f}" for case in row.cases)
    size = f"size {min(case.size_ratio for case in row.cases):.2f}" if row.cases else ""
    error = "" if row.error is None else f"error {row.error:.2g}"
    return "  ".join(part for part in (times, size, error) if part)
