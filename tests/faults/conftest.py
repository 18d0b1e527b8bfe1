"""Searches that begin at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.nursery import Nursery, nursery


@pytest.fixture(scope="session")
def home() -> Iterator[Nursery]:
    """Forks searches; it is made once, since its imports take seconds."""
    with nursery() as made:
        yield made
