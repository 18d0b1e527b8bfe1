"""A disk that takes nothing more: whatever the candidate, it says nothing about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Not permitted, read-only, full, over a quota or a limit of file sizes."""


def is_unwritable(error: BaseException) -> bool:
    """Whether it was the disk, or who may write to it."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def unwritable(number: int, path: Path) -> OSError:
    """The error of another process, as if it were one's own."""
    return OSError(number, os.strerror(number), str(path))
