"""What is prepared is the task's copy; the file of the prepared model is the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from autocompress.building.preparation import prepare
from autocompress.components import Recovery
from autocompress.measuring.runner import load_session
from autocompress.network.graph import LayerPair
from autocompress.task import Task

if TYPE_CHECKING:
    from tests.conftest import Tiny


@dataclass
class Wrapped(Recovery):
    """Its trace is easy to see: the names of the layers."""

    name = "wrapped"

    def prepare(self, model: nn.Module, example: torch.Tensor, pairs: list[LayerPair]) -> nn.Module:  # type: ignore[override]
        self.pairs = pairs
        return nn.Sequential(model)


def test_the_prepared_model_is_exported_and_the_given_task_stays(tiny: Tiny, tiny_task: Task, tmp_path: Path) -> None:
    recovery = Wrapped()
    given = tiny_task.model
    task, graph = prepare(tiny_task, replace(tiny.components, recoveries=(recovery,)), tmp_path / "fp32.onnx")
    assert tiny_task.model is given
    assert task.model is not given
    inputs = tiny_task.sets["search"].inputs[:8]
    outputs = load_session(tiny.components.target, graph.path, 1)([inputs])[0]
    with torch.no_grad():
        np.testing.assert_allclose(outputs, given(torch.from_numpy(inputs)).numpy(), atol=1e-4)
    assert set(graph.layers) == {f"0.{name}" for name in tiny.graph.layers}
    assert LayerPair("stem.0", "inner.0", "Relu") not in recovery.pairs  # its output is read twice
    assert LayerPair("inner.0", "outer.0", "Relu") in recovery.pairs


def test_without_such_recoveries_nothing_is_done(tiny: Tiny, tmp_path: Path) -> None:
    task, graph = prepare(tiny.task, tiny.components, tmp_path / "fp32.onnx")
    assert task.model is tiny.task.model
    assert graph.digest == tiny.graph.digest
