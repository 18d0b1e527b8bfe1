"""The module in which a finalist is fine-tuned: it trains in float and computes as the file will."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.components import QuantizedTensor
from autocompress.network.placement import place
from autocompress.policy import LayerPolicy
from autocompress.tensors.folding import folded_norms
from autocompress.tensors.module_weights import module_of, oriented
from autocompress.tensors.ranges import Range

if TYPE_CHECKING:
    from autocompress.building.recovery import Recoverable

REFRESH = 50
"""Steps after which a weight's grid is chosen anew; between them weights are rounded to the grid that is there."""


class TrainableModule(nn.Module):
    """Wraps a module; only what ends up in the layers of the file is trained.

    Norms that the exporter did not fold into a layer stay in eval mode, and their parameters are fixed.
    """

    def __init__(self, module: nn.Module, fixed: frozenset[str], hooks: list[torch.utils.hooks.RemovableHandle]) -> None:
        super().__init__()
        self.module = module
        self._fixed, self._hooks = fixed, hooks

    def forward(self, inputs: Tensor) -> Tensor:
        """What the module gives."""
        outputs: Tensor = self.module(inputs)
        return outputs

    def train(self, mode: bool = True) -> TrainableModule:
        """Switch the mode of everything but the fixed norms."""
        super().train(mode)
        for name in self._fixed:
            self.module.get_submodule(name).eval()
        return self

    def finished(self) -> nn.Module:
        """The plain module with its trained weights in float; removed weights are exactly 0."""
        for hook in self._hooks:
            hook.remove()
        for part in list(self.module.modules()):
            if parametrize.is_parametrized(part, "weight"):
                _bake(part)
        return self.module


class OnGrid(nn.Module):
    """Parametrization of a weight: masked, and rounded as in the file; gradients pass through the rounding unchanged.

    (Straight-through estimator, Bengio et al. 2013, arXiv 1308.3432.)

    Args:
        mask: bool, shape of the weight.
        quantize: chooses a grid for a weight and rounds to it.
        flip: the weight in the file's orientation, and back.
    """

    def __init__(
        self, mask: Tensor | None, quantize: Callable[[Tensor], QuantizedTensor] | None, flip: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._mask, self._quantize, self._flip = mask, quantize, flip
        self._grid: QuantizedTensor | None = None
        self._age = 0

    def masked(self, weight: Tensor) -> Tensor:
        """The weight without what was removed."""
        return weight if self._mask is None else weight * self._mask

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the file would compute with."""
        weight = self.masked(weight)
        if self._quantize is None:
            return weight
        with torch.no_grad():
            change = self.masked(self._flip(self._rounded(self._flip(weight).contiguous(), self._quantize))) - weight
        return weight + change

    def _rounded(self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor]) -> Tensor:
        if self._grid is None or self._age >= REFRESH:
            self._grid, self._age = quantize(weight), 0
        self._age += 1
        return self._grid.rounded(weight).dequantize()


def _bake(part: nn.Module) -> None:
    """Replace a constrained weight by its masked values."""
    parametrization: Any = part.parametrizations["weight"]  # type: ignore[index]
    weight = parametrization[0].masked(parametrization.original.detach())
    parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)
    part.weight = nn.Parameter(weight.contiguous())


def constrained(candidate: Recoverable, module: nn.Module, *, activations: bool) -> TrainableModule:
    """Hold the candidate's masks and grids in a float module of its shapes."""
    quantized = place(candidate.graph, candidate.policy, candidate.components.target.capabilities()).quantized
    trained = {*candidate.graph.layers, *folded_norms(module, candidate.graph.layers, candidate.task.example_input[:1])}
    hooks = []
    for name, layer in candidate.graph.layers.items():
        part = module_of(module, name)
        constraint = _constraint(candidate, name, part)
        if constraint is not None:
            parametrize.register_parametrization(part, "weight", constraint, unsafe=True)
        grid = candidate.compressed.ranges.get(quantized.get(layer.input, ""))
        if activations and grid is not None:
            hooks.append(part.register_forward_pre_hook(_rounded_input(grid)))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_owner(name) in trained)
    fixed = frozenset(name for name, part in module.named_modules() if isinstance(part, _NORMS) and name not in trained)
    return TrainableModule(module, fixed, hooks)


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Modules that behave otherwise in training than the file does."""


def _owner(parameter: str) -> str:
    """The module that a parameter belongs to, also when it is constrained."""
    return (
        parameter.split(".parametrizations.", maxsplit=1)[0]
        if ".parametrizations." in parameter
        else parameter.rpartition(".")[0]
    )


def _constraint(candidate: Recoverable, name: str, part: nn.Module) -> OnGrid | None:
    """The parametrization of a layer's weight; None when it trains freely."""
    layer, policy = candidate.graph.layers[name], candidate.policy.layers.get(name, LayerPolicy())
    compressed, quantizer = candidate.compressed.layers.get(name), candidate.quantizer(name)
    mask = compressed.mask if compressed is not None else None
    if mask is None and quantizer is None:
        return None
    stats = candidate.stats(name).cut(candidate.cuts(name))

    def flip(weight: Tensor) -> Tensor:
        return oriented(weight, layer, part)

    def quantize(weight: Tensor) -> QuantizedTensor:
        assert quantizer is not None
        return quantizer.quantize(weight, policy.bits, stats, mask)

    return OnGrid(None if mask is None else flip(mask), None if quantizer is None else quantize, flip)


def _rounded_input(grid: Range) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that rounds the input of a layer to its grid; the gradient stops where the grid clips."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounded = torch.fake_quantize_per_tensor_affine(inputs[0].float(), grid.scale, grid.zero_point, 0, grid.most)
        return (rounded.to(inputs[0].dtype), *inputs[1:])

    return hook
