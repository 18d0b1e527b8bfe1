"""Arrays that the process which measures hands over, and the sets that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.guarding.disk import is_unwritable
from autocompress.measuring.runner import save_array


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.float16(3), np.zeros((0, 3)), np.array([True, False])]
)
def test_an_array_is_stored_as_numpy_does(tmp_path: Path, array: NDArray[np.generic]) -> None:
    save_array(tmp_path / "array.npy", array)
    found = np.load(tmp_path / "array.npy")
    np.testing.assert_array_equal(found, np.atleast_1d(array))
    assert found.dtype == array.dtype


def test_a_full_disk_says_so() -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_array(Path("/dev/full"), np.zeros(100_000))
    assert is_unwritable(raised.value)
