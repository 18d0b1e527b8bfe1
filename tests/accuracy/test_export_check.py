"""A file that computes something else than the module is no reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.accuracy.export_check import check_export
from autocompress.errors import ExportError


class Net(nn.Module):
    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.after = nn.Linear(3, 4), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(x))


def task(after: Callable[[Tensor], Tensor]) -> Task:
    torch.manual_seed(0)
    sets = [[(torch.randn(20, 3), torch.zeros(20))] for _ in range(3)]
    return Task(Net(after), torch.zeros(1, 3), *sets, metric="squared_error")


def together(given: Task) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """As a file gives them: all examples at once."""
    with torch.no_grad():
        return given.model(torch.from_numpy(given.sets["search"].inputs)).numpy()


def test_a_file_that_computes_what_the_module_does_passes() -> None:
    given = task(torch.relu)
    check_export(given, "search", together(given) * np.float32(1 + 1e-5))


@pytest.mark.parametrize(
    "after",
    [
        lambda y: y - y.mean(0, keepdim=True),
        lambda y: nn.functional.batch_norm(torch.cat([y, y + 1]), None, None, training=True)[: len(y)],
        lambda y: y + torch.randn(4),
        lambda y: nn.functional.dropout(y, training=True),
        lambda y: y if y.sum() > 0 else -y,
    ],
    ids=["mean of the batch", "batch norm without running statistics", "noise", "dropout", "branch"],
)
def test_a_module_that_gives_an_example_other_outputs_alone_is_refused(after: Callable[[Tensor], Tensor]) -> None:
    given = task(after)
    with pytest.raises(ExportError, match=r"one example at a time, agree to -?[0-9.]+ dB only"):
        check_export(given, "search", together(given))


def test_another_shape_is_refused() -> None:
    given = task(torch.relu)
    with pytest.raises(ExportError, match=r"gives shape \(8, 3\), the model \(8, 4\)"):
        check_export(given, "search", together(given)[:, :3])
