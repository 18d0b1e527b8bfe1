"""What a file loses on each class: a mean over all classes may hide one that is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH = 10
"""Examples of a class that a drop is told of."""


@dataclass(frozen=True)
class ClassDrop:
    """Share of the examples of one class whose top choice is right, of FP32 and of the file.

    Attributes:
        label: the class.
        drop: accuracy of FP32 minus that of the file.
    """

    label: int
    examples: int
    accuracy_fp32: float
    accuracy_file: float
    drop: float


def class_drops(labels: NDArray[Any], fp32: NDArray[np.int64], file: NDArray[np.int64]) -> list[ClassDrop]:
    """One for each class that occurs, by label; all arguments have shape (N,): labels, then choices."""
    return [_class_drop(int(label), fp32[labels == label], file[labels == label]) for label in np.unique(labels)]


def _class_drop(label: int, fp32: NDArray[np.int64], file: NDArray[np.int64]) -> ClassDrop:
    before, after = (float((choices == label).mean()) for choices in (fp32, file))
    return ClassDrop(label, len(fp32), before, after, before - after)


def worst_classes(drops: Sequence[ClassDrop], count: int = 3) -> list[ClassDrop]:
    """Those that lose most, the worst first, of equal drops the one with more examples; classes that lose nothing are not.

    Of a class with fewer than `ENOUGH` examples a drop says nothing.
    """
    losing = [found for found in drops if found.drop > 0 and found.examples >= ENOUGH]
    return sorted(losing, key=lambda found: (-found.drop, -found.examples))[:count]
