"""The same file in the same runtime on this machine: accuracy too may depend on the processor."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from autocompress.accuracy.evaluation import Evaluator
from autocompress.components import Target
from autocompress.errors import RuntimeCrashError
from autocompress.measuring.device import open_device
from autocompress.network.graph import BaseGraph
from autocompress.transport import LocalTransport


def host_accuracy(evaluator: Evaluator, target: Target, graph: BaseGraph, path: Path, name: str) -> float | None:
    """The metric's value of a file on a whole set, computed on this machine; None where it does not run or is the target."""
    if evaluator.device.is_here:
        return None
    with open_device(target, torch.get_num_threads(), LocalTransport()) as device, suppress(RuntimeCrashError):
        here = replace(evaluator, device=device, reference={})
        if here.metric.against_reference:
            here.keep_reference(graph, name)
        return here.metric.value(here.statistics(path, name, 0, len(here.targets[name])))
    return None
