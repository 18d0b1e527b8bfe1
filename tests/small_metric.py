"""Functions for the metric `function`, as a user writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def minus_absolute_error(outputs: Array, targets: Array) -> Array:
    wanted = np.eye(outputs.shape[1])[targets] if targets.ndim == 1 else targets
    return np.asarray(-np.abs(outputs - wanted).mean(axis=1))


def one_number(outputs: Array, targets: Array) -> float:
    return 0.5


def not_finite(outputs: Array, targets: Array) -> Array:
    return np.full(len(outputs), np.nan)
