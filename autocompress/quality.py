"""How values of a metric are written for people: shares in per cent and points, every other metric in its own unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.components import Metric


@dataclass(frozen=True)
class Quality:
    """A metric's name, and whether its values are shares, 0 to 1."""

    metric: str = "accuracy"
    percent: bool = True

    @classmethod
    def of(cls, metric: Metric) -> Quality:
        """As the metric says."""
        return cls(metric.name, metric.percent)

    def value(self, value: float, digits: int = 2) -> str:
        """`88.10%` of a share, `-0.0312` of another metric."""
        return f"{100 * value:.{digits}f}%" if self.percent else f"{value:.5g}"

    def difference(self, *differences: float, digits: int = 1) -> str:
        """`0.5 points` of a share, `0.1 to 0.9 points` for two; digits count behind the point of a share only."""
        if self.percent:
            return " to ".join(f"{round(100 * difference, digits) + 0.0:.{digits}f}" for difference in differences) + " points"
        return " to ".join(f"{difference:.4g}" for difference in differences)

    def change(self, drop: float, digits: int = 1) -> str:
        """`0.5 points lower` for a drop of 0.005: larger values are better, whatever the metric."""
        return f"{self.difference(abs(drop), digits=digits)} {'lower' if drop > 0 else 'higher'}" if drop else "unchanged"

    def signed(self, drop: float, digits: int = 1) -> str:
        """`-0.5 points` for a drop of 0.005; never a negative zero."""
        if self.percent:
            return f"{round(-100 * drop, digits) + 0.0:+.{digits}f} points"
        return f"{0.0 - drop:+.4g}"
