"""How values of the study's metric are written for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress import StudyContext

_SHARES = re.compile(r"accuracy|agreement|top[-_]?\d", re.IGNORECASE)


@dataclass(frozen=True)
class Quality:
    """A metric, and whether it is a share of the examples, 0 to 1; any other keeps its own unit."""

    metric: str
    share: bool

    @classmethod
    def of(cls, study: StudyContext) -> Quality:
        """Judged by the metric's name and its value for FP32."""
        baseline = study.baseline.accuracy
        return cls(study.metric, _SHARES.search(study.metric) is not None and (baseline is None or 0 <= baseline <= 1))

    def value(self, value: float, digits: int = 1) -> str:
        """`88.1%` of a share, `-0.0312` of another metric."""
        return f"{100 * value:.{digits}f}%" if self.share else f"{value:.4g}"

    def difference(self, *differences: float, digits: int = 1) -> str:
        """`0.5 points` of a share, `0.1 to 0.9 points` for two."""
        if self.share:
            return " to ".join(f"{100 * difference:.{digits}f}" for difference in differences) + " points"
        return " to ".join(f"{difference:.4g}" for difference in differences)

    def change(self, drop: float, digits: int = 1) -> str:
        """`0.5 points lower` for a drop of 0.005: larger values are better, whatever the metric."""
        return f"{self.difference(abs(drop), digits=digits)} {'lower' if drop > 0 else 'higher'}" if drop else "unchanged"
