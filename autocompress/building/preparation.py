"""The model as it is before anything is measured: recoveries may put it into a form that compresses better."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from autocompress.accuracy.evaluation import check_outputs
from autocompress.components import Components, Recovery
from autocompress.guarding.plugin_call import calling, described
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph
from autocompress.network.pairs import layer_pairs
from autocompress.task import Task


def prepare(task: Task, components: Components, path: Path) -> tuple[Task, BaseGraph]:
    """The task whose model every configured recovery prepared, and its FP32 file; the given task stays as it is.

    Raises:
        ExportError: the model does not export.
        PluginError: a recovery fails.
        CheckError: what it returned computes something else.
    """
    prepared = copy.copy(task)
    graph = export(prepared.model, prepared.example_input, path)
    for recovery in components.recoveries:
        if type(recovery).prepare is not Recovery.prepare:
            prepared.model = _prepared(recovery, prepared, graph)
            graph = export(prepared.model, prepared.example_input, path)
    return prepared, graph


def _prepared(recovery: Recovery, task: Task, graph: BaseGraph) -> nn.Module:
    """What a recovery makes of a copy of the model, when it computes the same."""
    with calling(recovery, "prepare"):
        model = recovery.prepare(copy.deepcopy(task.model), task.example_input.clone(), layer_pairs(graph))
        with torch.no_grad():
            before, after = (each.eval()(task.example_input).numpy() for each in (task.model, model))
    check_outputs(after, before, f"the model before and after {described(recovery)}")
    return model
