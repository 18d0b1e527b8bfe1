"""A set of examples as others know it: by what can be told without reading it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """What is known of a set of examples without reading it.

    Attributes:
        digest: short hash of its inputs and targets.
        examples: how many there are.
        shape: of one input, without the batch.
        dtype: of the inputs.
    """

    digest: str
    examples: int
    shape: tuple[int, ...]
    dtype: str
