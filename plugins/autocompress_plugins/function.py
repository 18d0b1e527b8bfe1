"""Metric `function`: a function of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import MISSING

from autocompress import Metric, hookimpl, load_function
from autocompress.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Function(Metric):
    """Mean of what a function gives for each example; larger must be better.

    Attributes:
        path: 'module:function'; it takes outputs, shape (N, ...), and targets, shape (N, ...), as arrays, and returns one
            number for each example, shape (N,). An example's number may not depend on the other examples.
        against_reference: give it the FP32 file's outputs in place of the targets.
        percent: its numbers are shares, 0 to 1, shown in per cent.
    """

    name = "function"

    path: str = MISSING
    against_reference: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        self._function = load_function("metric.function.path", self.path)

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """What the function returns; shape (N,).

        Raises:
            DataError: it returns something else than one finite number for each example.
        """
        found = np.asarray(self._function(outputs, expected))
        if found.shape != (len(outputs),) or not np.isfinite(found).all():
            raise DataError(
                f"metric function: {self.path} returned shape {found.shape}, {np.isfinite(found).sum()} of its numbers finite; "
                f"expected one finite number for each of {len(outputs)} examples"
            )
        return found.astype(np.float64)


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """The user's function."""
    return [Function]
