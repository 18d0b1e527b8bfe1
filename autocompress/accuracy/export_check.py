"""Whether the FP32 file computes what the module does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.accuracy.evaluation import MINIMUM_SNR_DB, snr_db
from autocompress.errors import ExportError
from autocompress.task import Task

EXAMPLES = 8


def check_export(task: Task, name: str, reference: NDArray[Any]) -> None:
    """Compare a few outputs of the file, which ran examples together, with the module's for each example alone.

    Args:
        name: of the set.
        reference: the file's outputs on it, shape (N, ...).

    Raises:
        ExportError: they differ: the module branches on data, which the export fixed, mixes the examples of a batch, as a batch
            norm without running statistics does, or is random.
    """
    inputs = torch.from_numpy(task.sets[name].inputs[:EXAMPLES])
    with torch.no_grad():
        alone = np.concatenate([task.model(one[None]).numpy() for one in inputs])
    given = reference[:EXAMPLES]
    if given.shape != alone.shape:
        raise ExportError(f"task.{name}: the exported file gives shape {given.shape}, the model {alone.shape}")
    ratio = snr_db(alone, given)
    if np.issubdtype(alone.dtype, np.floating) and ratio < MINIMUM_SNR_DB:
        raise ExportError(
            f"task.{name}: the exported file and the model, one example at a time, agree to {ratio:.1f} dB only; expected "
            f"{MINIMUM_SNR_DB:.0f}: the model must not branch on data, mix the examples of a batch (batch norm needs running "
            "statistics) or be random"
        )
