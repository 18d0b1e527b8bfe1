"""The contract of `Observer`."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.components import (
    Observer,
)
from autocompress.testing.batches import BATCHES, normal
from autocompress.testing.round_trip import check_settings


class ObserverContract:
    """The promises of `Observer`, on every kind of activation."""

    @pytest.fixture
    def observer(self) -> Observer:
        """The component under test, which has seen nothing."""
        raise NotImplementedError("a subclass of ObserverContract gives the fixture `observer`")

    @pytest.fixture(params=BATCHES)
    def batches(self, request: pytest.FixtureRequest) -> list[NDArray[np.float32]]:
        """Calibration batches, as copies."""
        return [batch.copy() for batch in BATCHES[request.param]]

    def test_range_is_ordered_and_finite(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Low is at most high, for every number of bits."""
        for bits in (2, 4, 8, 16):
            low, high = _range(observer, batches, bits)
            assert math.isfinite(low)
            assert math.isfinite(high)
            assert low <= high

    @pytest.mark.parametrize("bits", [8, 16])
    def test_range_covers_most_values(self, observer: Observer, batches: list[NDArray[np.float32]], bits: int) -> None:
        """Nine values of ten lie in the range, widened to include 0, or within one step of it."""
        low, high = _range(observer, batches, bits)
        values = np.concatenate([batch.ravel() for batch in batches])
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / (2**bits - 1)
        assert np.mean((values >= low - step) & (values <= high + step)) >= 0.9

    def test_joined_ranges_are_of_the_same_tensors(self, observer: Observer) -> None:
        """Every tensor keeps a range, ordered and finite, and what was found for each is not written to."""
        found = {name: _range(observer, [batch.copy() for batch in BATCHES[name]], 8) for name in BATCHES}
        given = dict(found)
        joined = observer.joined(given)
        assert given == found
        assert list(joined) == list(found)
        assert all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in joined.values())
        assert not observer.joined({})

    def test_is_finite_before_any_batch(self, observer: Observer) -> None:
        """A tensor that calibration never reached has a range."""
        assert all(math.isfinite(end) for end in observer.range(8))

    def test_asking_changes_nothing(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Neither the answer nor what later batches do to it depends on how often the range was asked for."""
        expected = _range(observer, batches, 8)
        asked = _fresh(observer)
        for batch in batches:
            asked.update(batch)
            asked.range(4)
        assert asked.range(8) == asked.range(8) == expected

    def test_copies_are_independent(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """`dataclasses.replace` forgets what was seen, `copy.deepcopy` keeps it, and neither shares it."""
        before = observer.range(8)
        seen = _fresh(observer)
        for batch in batches:
            seen.update(batch)
        assert copy.deepcopy(seen).range(8) == seen.range(8)
        copy.deepcopy(seen).update(np.full(1000, 1e6, np.float32))
        assert seen.range(8) == _range(observer, batches, 8)
        assert _fresh(seen).range(8) == observer.range(8) == before

    def test_memory_layout_does_not_matter(self, observer: Observer) -> None:
        """A view with other strides gives the same range as its copy."""
        view = normal(6, 7, 8).transpose(2, 0, 1)
        assert _range(observer, [view], 8) == _range(observer, [np.ascontiguousarray(view)], 8)

    def test_leaves_its_input_alone(self, observer: Observer, batches: list[NDArray[np.float32]]) -> None:
        """Batches are not written to."""
        before = [batch.copy() for batch in batches]
        _range(observer, batches, 8)
        for batch, copied in zip(batches, before, strict=True):
            np.testing.assert_array_equal(batch, copied)

    def test_settings_survive_a_round_trip(self, observer: Observer) -> None:
        """The fields can be configured, and stored as JSON."""
        check_settings(observer)


def _fresh(observer: Observer) -> Observer:
    """A copy with the same settings that has seen nothing, as calibration makes one for each tensor."""
    return dataclasses.replace(observer)  # type: ignore[type-var]  # every component is a dataclass


def _range(observer: Observer, batches: list[NDArray[np.float32]], bits: int) -> tuple[float, float]:
    """What a fresh copy answers after the batches."""
    copied = _fresh(observer)
    for batch in batches:
        copied.update(batch)
    return copied.range(bits)
