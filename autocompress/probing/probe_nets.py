"""Small networks of one kind of layer, or with one operator between convolutions: what a target is tried on.

They are generic and not cut from the user's model: what is found is true of a device and its runtime, is kept for every later
search, and the tables of a search measure the real network anyway. Most come small, where calls cost more than arithmetic, and
large, where arithmetic or the bytes of the weights decide; a matrix comes with one row of inputs and with many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTH = 3
"""Layers in a row, so that quantizing the input and the output is not most of the time."""

CHANNELS = 32


@dataclass(frozen=True)
class ProbeNet:
    """One network and the shapes of its input.

    Attributes:
        subject: the layer kind, or the ONNX operator, that it is about.
        make: gives the module.
        shapes: of one input, batch axis included; those after the first differ from it in space only.
        rows: where the input numbers rows of a table, how many there are; 0: the input is float.
        between: whether its other layers are convolutions that compute in integers, as around such a layer in a real network.
    """

    subject: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    rows: int = 0
    between: bool = False

    def examples(self, shape: tuple[int, ...], count: int, seed: int) -> Tensor:
        """Random inputs, (count, *shape[1:])."""
        generator = torch.Generator().manual_seed(seed)
        if self.rows:
            return torch.randint(self.rows, (count, *shape[1:]), generator=generator)
        return torch.randn(count, *shape[1:], generator=generator)


def layer_nets(kind: str) -> tuple[ProbeNet, ...]:
    """The networks of a kind of layer; none for a kind that is not known here."""
    return tuple(net for net in _LAYERS if net.subject == kind)


def op_nets(op_type: str) -> tuple[ProbeNet, ...]:
    """The network of an operator between layers; none for one that is not known here."""
    if op_type not in _OPS:
        return ()
    op, inputs = _OPS[op_type]
    return (ProbeNet(op_type, lambda: _Between(op, inputs), ((1, CHANNELS, 8, 8), (1, CHANNELS, 40, 40))),)


def _chain(layer: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*(part for _ in range(DEPTH) for part in (layer(), nn.ReLU())))


def _convolutions(channels: int) -> nn.Module:
    wide = (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
    pointwise = (nn.Conv2d(channels, channels, 1), nn.ReLU())
    return nn.Sequential(*wide, *pointwise, nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())


def _mobile_block(channels: int, inner: int) -> nn.Module:
    depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
    return nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), depthwise, nn.ReLU(), nn.Conv2d(inner, channels, 1))


_LAYERS = (
    ProbeNet("conv2d", lambda: _convolutions(CHANNELS), ((1, CHANNELS, 8, 8),)),
    ProbeNet("conv2d", lambda: _convolutions(192), ((1, 192, 14, 14),)),
    ProbeNet(
        "depthwise",
        lambda: _mobile_block(CHANNELS, 96),
        ((1, CHANNELS, 7, 7), (1, CHANNELS, 28, 28)),
        between=True,
    ),
    ProbeNet(
        "conv1d",
        lambda: _chain(lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)),
        ((1, CHANNELS, 64), (1, CHANNELS, 1024)),
    ),
    ProbeNet(
        "conv_transpose",
        lambda: nn.Sequential(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2), nn.ReLU()),
        ((1, CHANNELS, 32, 32),),
    ),
    ProbeNet("linear", lambda: _chain(lambda: nn.Linear(1024, 1024)), ((1, 1024),)),
    ProbeNet("linear", lambda: _chain(lambda: nn.Linear(256, 256)), ((1, 96, 256),)),
    ProbeNet("embedding", lambda: nn.Sequential(nn.Embedding(4096, 128)), ((1, 256),), rows=4096),
)

_OPS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "Add": (torch.add, 2),
    "Mul": (torch.mul, 2),
    "MatMul": (torch.matmul, 2),
    "Concat": (lambda a, b: torch.cat([a, b], dim=1), 2),
    "GlobalAveragePool": (lambda a: a.mean(dim=(2, 3), keepdim=True), 1),
    "AveragePool": (lambda a: functional.avg_pool2d(a, 2), 1),
    "LeakyRelu": (lambda a: functional.leaky_relu(a, 0.1), 1),
    "Sigmoid": (torch.sigmoid, 1),
    "Softmax": (lambda a: functional.softmax(a, dim=-1), 1),
    "HardSigmoid": (functional.hardsigmoid, 1),
    "HardSwish": (functional.hardswish, 1),
}
"""ONNX operator to what gives it in PyTorch, and how many tensors it reads."""


class _Between(nn.Module):
    """Convolutions, the operator, and a convolution that reads it."""

    def __init__(self, op: Callable[..., Tensor], inputs: int) -> None:
        super().__init__()
        self._op = op
        self.before = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(inputs))
        self.after = nn.LazyConv2d(CHANNELS, 1)
        with torch.no_grad():
            self(torch.zeros(1, CHANNELS, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.after(self._op(*(layer(x) for layer in self.before)))
        return found
