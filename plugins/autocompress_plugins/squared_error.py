"""Metric `squared_error`: mean squared error of a regression, with its sign changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autocompress import Metric, hookimpl
from autocompress.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class SquaredError(Metric):
    """Minus the mean squared error, in squared units of the target: at most 0, which is perfect.

    The sign makes larger better, as for every metric; a drop of 0.1 is a mean squared error that is larger by 0.1.
    """

    name = "squared_error"
    percent = False

    def statistics(self, outputs: NDArray[np.generic], expected: NDArray[np.generic]) -> NDArray[np.float64]:
        """Minus the mean of (output - target)^2 over the outputs of each example; shape (N,).

        Args:
            outputs: shape (N, ...).
            expected: as many numbers for each example.

        Raises:
            DataError: an example has another number of outputs than of targets.
        """
        found, wanted = (part.reshape(len(part), -1).astype(np.float64) for part in (outputs, expected))
        if found.shape != wanted.shape:
            raise DataError(
                f"metric squared_error: outputs have shape {outputs.shape}, targets {expected.shape}; "
                "expected as many numbers for each example"
            )
        errors: NDArray[np.float64] = np.square(found - wanted).mean(axis=1)
        return -errors


@hookimpl
def autocompress_metrics() -> list[type[Metric]]:
    """Squared error."""
    return [SquaredError]
