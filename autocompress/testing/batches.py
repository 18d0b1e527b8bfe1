"""Arrays of random numbers, and the activations on which observers are tried."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Standard normal numbers, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


BATCHES: dict[str, list[NDArray[np.float32]]] = {
    "signed": [normal(4, 3, 5, 5)],
    "after_relu": [np.maximum(normal(4, 100), 0)],
    "negative": [-np.abs(normal(4, 100))],
    "growing": [normal(4, 100, seed=seed) * 10**seed for seed in range(4)],
    "outlier": [np.append(normal(400), np.float32(1e4))],
    "constant": [np.full((2, 3), 0.3, np.float32)],
    "zeros": [np.zeros((2, 3), np.float32)],
    "one_value": [np.full((1,), -2.5, np.float32)],
    "minute": [normal(400) * np.float32(1e-40)],
}
"""Calibration batches of one activation tensor."""
