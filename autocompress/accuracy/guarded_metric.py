"""A metric as the core calls it: it cannot write to what others read, and its figures are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.components import Metric
from autocompress.errors import PluginError
from autocompress.guarding.plugin_call import calling, described, read_only


@dataclass
class GuardedMetric(Metric):
    """The configured metric, checked at each call."""

    metric: Metric

    def __post_init__(self) -> None:
        self.name = self.metric.name  # type: ignore[misc]
        self.against_reference, self.percent = self.metric.against_reference, self.metric.percent
        self.class_scores = self.metric.class_scores

    @property
    def is_mean(self) -> bool:
        """As of the configured one."""
        return self.metric.is_mean

    def statistics(self, outputs: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
        """One finite row for each example, which nobody can change.

        Raises:
            PluginError: they are anything else.
        """
        with calling(self.metric, "statistics"):
            found = np.array(self.metric.statistics(read_only(outputs), read_only(expected)), dtype=np.float64)
        if found.ndim not in (1, 2) or len(found) != len(outputs):
            wanted = f"({len(outputs)},) or ({len(outputs)}, k)"
            raise PluginError(f"{described(self.metric)}: statistics have shape {found.shape}; expected {wanted}")
        if not np.isfinite(found).all():
            raise PluginError(f"{described(self.metric)}: statistics hold NaN or infinity")
        return read_only(found)

    def value(self, statistics: NDArray[np.float64]) -> float:
        """A finite number.

        Raises:
            PluginError: it is none.
        """
        with calling(self.metric, "value"):
            found = float(self.metric.value(read_only(statistics)))
        if not math.isfinite(found):
            raise PluginError(f"{described(self.metric)}: the value is {found}; expected a finite number")
        return found
