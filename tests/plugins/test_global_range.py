from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from autocompress_plugins.global_range import GlobalRange

from autocompress import Observer
from autocompress.tensors.calibration import Calibration
from autocompress.testing import ObserverContract

if TYPE_CHECKING:
    from tests.conftest import Tiny


class TestGlobalRange(ObserverContract):
    @pytest.fixture
    def observer(self) -> Observer:
        return GlobalRange()


def test_all_have_the_widest_range() -> None:
    assert GlobalRange().joined({"a": (-1.0, 2.0), "b": (0.0, 5.0)}) == {"a": (-1.0, 5.0), "b": (-1.0, 5.0)}


def test_every_tensor_of_a_net_has_the_range_of_the_widest(tiny: Tiny, tmp_path: Path) -> None:
    components = replace(tiny.components, observer=GlobalRange())
    ranges = Calibration(tiny.task, tiny.graph, components, tmp_path).ranges
    alone = tiny.calibration.ranges
    low = min(-grid.zero_point * grid.scale for grid in alone.values())
    high = max((255 - grid.zero_point) * grid.scale for grid in alone.values())
    assert set(ranges) == set(alone)
    assert len(set(ranges.values())) == 1
    assert next(iter(ranges.values())).scale == pytest.approx((high - low) / 255, rel=0.01)
    assert len(set(alone.values())) > 1


def test_what_is_seen_reaches_no_other_tensor() -> None:
    first, second = GlobalRange(), GlobalRange()
    first.update(np.asarray([9.0], np.float32))
    second.update(np.asarray([-1.0], np.float32))
    assert (first.range(8), second.range(8)) == ((0.0, 9.0), (-1.0, 0.0))
