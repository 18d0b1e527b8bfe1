"""What no file could be made of is refused by its parameters, before anything is run or allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.errors import ModelError
from autocompress.network.parameters import check_parameters


def with_weight(value: torch.Tensor) -> nn.Module:
    model = nn.Linear(2, 3)
    model.weight = nn.Parameter(value, requires_grad=False)
    return model


REFUSED = {
    "half": (nn.Linear(2, 3).half(), "weight is torch.float16"),
    "bfloat16": (nn.Linear(2, 3).bfloat16(), "weight is torch.bfloat16"),
    "double": (nn.Linear(2, 3).double(), "weight is torch.float64"),
    "complex": (with_weight(torch.ones(3, 2, dtype=torch.complex64)), "weight is torch.complex64"),
    "sparse": (with_weight(torch.ones(3, 2).to_sparse()), "torch.sparse_coo; expected dense float32"),
    "on meta": (nn.Linear(2, 3, device="meta"), "weight has no values yet"),
    "lazy": (nn.LazyLinear(3), "weight has no values yet"),
    "NaN": (with_weight(torch.tensor([[float("nan"), 1.0]])), "weight contains NaN or infinity"),
    "infinite": (with_weight(torch.tensor([[float("-inf"), 1.0]])), "weight contains NaN or infinity"),
    "zero channels": (with_weight(torch.ones(0, 2)), r"weight is empty, shape \(0, 2\)"),
    "2^31 weights": (with_weight(torch.zeros(1).expand(2**16, 2**15)), "its tensors take 8,589,934,604 bytes"),
    "no module": (lambda x: x, "task.model is function; expected a torch.nn.Module"),
}


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compressed_is_refused_in_one_line(model: object, words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        check_parameters(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight", [torch.zeros(3, 2), torch.tensor([[1e-40, 3e38]]), torch.ones(1, 1)], ids=str)
def test_odd_but_finite_weights_are_taken(weight: torch.Tensor) -> None:
    model = with_weight(weight)
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))  # as attention has it
    assert check_parameters(model) is model
