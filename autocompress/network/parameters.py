"""Whether a module can be compressed at all: told from its parameters, without running it or allocating anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autocompress.errors import ModelError

MOST_BYTES = 2**31 - 1
"""Of an ONNX file in one piece: protobuf counts bytes in 32 bits."""


def check_parameters(model: object) -> nn.Module:
    """The module itself.

    Raises:
        ModelError: it is no module, a parameter is empty, has no values yet, is not float32 or not finite, or all are more than
            a file holds.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"task.model is {type(model).__name__}; expected a torch.nn.Module")
    who = f"model {type(model).__name__}"
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, tensor in tensors.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise ModelError(f"{who}: {name} has no values yet (it is lazy or on device meta); load or initialize its weights")
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size_bytes > MOST_BYTES:
        raise ModelError(
            f"{who}: its tensors take {size_bytes:,} bytes; expected at most {MOST_BYTES:,}, what an ONNX file holds"
        )
    for name, parameter in model.named_parameters():
        _check_values(f"{who}: {name}", parameter)
    return model


def _check_values(name: str, parameter: Tensor) -> None:
    if parameter.dtype != torch.float32 or parameter.layout != torch.strided:
        raise ModelError(f"{name} is {parameter.dtype}, {parameter.layout}; expected dense float32: call model.float() first")
    if not parameter.numel():
        raise ModelError(f"{name} is empty, shape {tuple(parameter.shape)}; leave such a layer out")
    if not bool(parameter.detach().isfinite().all()):
        raise ModelError(f"{name} contains NaN or infinity; expected finite weights")
