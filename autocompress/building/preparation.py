"""The model as it is before anything is measured: recoveries may put it into a form that compresses better."""

from __future__ import annotations

import copy
from pathlib import Path

from autocompress.components import Components, Recovery
from autocompress.network.graph import BaseGraph, export
from autocompress.network.pairs import layer_pairs
from autocompress.task import Task


def prepare(task: Task, components: Components, path: Path) -> tuple[Task, BaseGraph]:
    """The task whose model every configured recovery prepared, and its FP32 file; the given task stays as it is.

    Raises:
        ExportError: the model does not export.
    """
    prepared = copy.copy(task)
    graph = export(prepared.model, prepared.example_input, path)
    for recovery in components.recoveries:
        if type(recovery).prepare is not Recovery.prepare:
            prepared.model = recovery.prepare(prepared.model, prepared.example_input, layer_pairs(graph))
            graph = export(prepared.model, prepared.example_input, path)
    return prepared, graph
