"""A disk that takes nothing more: whatever the candidate, it says nothing about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Not permitted, read-only, full, over a quota or a limit of file sizes."""


def is_unwritable(error: BaseException) -> bool:
    """Whether it was the disk, or who may write to it."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def unwritable(number: int, path: Path) -> OSError:
    """The error of another process, as if it were one's own."""
    return OSError(number, os.strerror(number), str(path))


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """As `numpy.save`, whose own error does not say that the disk is full."""
    whole = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.reshape(-1).view(np.uint8).data)
