"""The examples that a file decides otherwise than FP32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Flip:
    """An example whose top choice changed.

    Attributes:
        index: in the set, from 0.
        label: the class that counts as right.
        choice_fp32, choice_file: the class with the largest output.
    """

    index: int
    label: int
    choice_fp32: int
    choice_file: int
    right_fp32: bool
    right_file: bool


def top_choices(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """The class with the largest output, of equal ones the first: shape (N,) for outputs of shape (N, classes)."""
    choices: NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return choices


def find_flips(labels: NDArray[Any], fp32: NDArray[np.int64], file: NDArray[np.int64]) -> list[Flip]:
    """The examples for which the choices of FP32 and of the file differ; all arguments have shape (N,)."""
    return [
        Flip(int(at), int(labels[at]), int(fp32[at]), int(file[at]), bool(fp32[at] == labels[at]), bool(file[at] == labels[at]))
        for at in np.flatnonzero(fp32 != file)
    ]
