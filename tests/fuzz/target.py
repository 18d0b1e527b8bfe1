"""Something that reads what a stranger may have written, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        seeds: valid inputs.
        read: takes an input; raises `AutocompressError` and nothing else, and asserts what holds of an input that it takes.
        mutate: another input, made from one with some knowledge of its form.
        runs: inputs of the full form.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    mutate: Callable[[bytes, Random], bytes]
    runs: int
