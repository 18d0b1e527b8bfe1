"""A metric for the metric plugin `function` whose evaluation sleeps: stands for a large model, and takes no processor."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECONDS = "AUTOCOMPRESS_BENCHMARK_SECONDS"

_seen: set[str] = set()


def right_after_a_while(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Whether each choice is right; sleeps when a file's outputs are new, as long as the environment says."""
    digest = hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest()
    if digest not in _seen:
        _seen.add(digest)
        time.sleep(float(os.environ.get(SECONDS, "1")))
    return np.asarray(outputs.argmax(1) == targets, dtype=np.float64)
