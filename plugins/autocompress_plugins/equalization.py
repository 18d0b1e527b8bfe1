"""Recovery `equalization`: neighbouring layers share out the sizes of the channels between them."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress import Recovery, folded_norms, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autocompress import LayerPair

LARGEST_FACTOR = 1e3
"""A channel is not scaled by more than this at a time: what is nearly dead stays so."""

SETTLED = 1e-3
"""The factors have converged when none of them moves a channel by more than this share."""

TOLERANCE = 1e-4
"""Most that an output may change, relative to the largest: float32's precision over the layers of a deep net."""

HOMOGENEOUS = frozenset({"", "Relu"})
"""What may stand between the layers: f(s x) = s f(x)."""


class EqualizationWarning(UserWarning):
    """The model was left as it is."""


@dataclass
class Equalization(Recovery):
    """Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721, section 4.1), once, before anything is measured.

    Channel i between two layers with nothing or a Relu between them is divided by `s_i = sqrt(r1_i r2_i) / r2_i` in the first
    and multiplied in the second (equation 11), where r1_i and r2_i are the largest magnitudes of its weights in both, with
    batch norm folded in. Both then have the range sqrt(r1_i r2_i), and the model computes the same. Chains are repeated until
    the factors settle.

    Helps where one scale serves channels of very different size: per-tensor weights and every activation. Nothing is gained on
    networks with ReLU6, whose bound does not scale along.

    Attributes:
        rounds: most passes over the pairs.
    """

    name = "equalization"

    rounds: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"recover.equalization.rounds={self.rounds}: expected at least 1")

    def prepare(self, model: nn.Module, example: Tensor, pairs: Sequence[LayerPair]) -> nn.Module:
        """An equalized copy; the model itself, with an `EqualizationWarning`, where the copy computes something else."""
        equalized = copy.deepcopy(model)
        norms = {layer: norm for norm, layer in folded_norms(model, _layers(pairs), example).items()}
        chosen = [_Pair.of(equalized, pair, norms) for pair in pairs if pair.activation in HOMOGENEOUS]
        usable = [pair for pair in chosen if pair is not None]
        for _ in range(self.rounds):
            if max([pair.equalize() for pair in usable], default=0.0) < SETTLED:
                break
        change = _change(model, equalized, example)
        if change <= TOLERANCE:
            return equalized
        warnings.warn(f"equalization: left out: outputs would change by {change:.1e}", EqualizationWarning, stacklevel=2)
        return model


def _layers(pairs: Sequence[LayerPair]) -> list[str]:
    return list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))


@torch.no_grad()
def _change(model: nn.Module, equalized: nn.Module, example: Tensor) -> float:
    """Largest change of an output, relative to the largest output."""
    before, after = model(example), equalized(example)
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-12))


class _Pair:
    """Two layers, with the batch norm behind each; `inputs` of the second are `outputs` of the first."""

    def __init__(self, first: _Scaled, second: _Scaled) -> None:
        self._first, self._second = first, second

    @classmethod
    def of(cls, model: nn.Module, pair: LayerPair, norms: dict[str, str]) -> _Pair | None:
        """The pair, when both are convolutions or linear layers whose channels are each other's."""
        first, second = (_Scaled.of(model, name, norms.get(name)) for name in (pair.first, pair.second))
        if first is None or second is None or not first.can_scale_outputs or len(first.outputs()) != len(second.inputs()):
            return None
        return cls(first, second)

    @torch.no_grad()
    def equalize(self) -> float:
        """Move the factors; the largest of them as a change, 0 when all are 1."""
        ours, theirs = self._first.outputs(), self._second.inputs()
        factor = ((ours * theirs).sqrt() / theirs).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
        factor = factor.where((ours > 0) & (theirs > 0), 1.0)
        self._first.divide_outputs(factor)
        self._second.multiply_inputs(factor)
        return float((factor - 1).abs().max()) if len(factor) else 0.0


class _Scaled:
    """A convolution or linear layer and the batch norm that is folded into it."""

    def __init__(self, module: nn.Module, norm: nn.Module | None) -> None:
        self._module, self._norm = module, norm

    @classmethod
    def of(cls, model: nn.Module, name: str, norm: str | None) -> _Scaled | None:
        """None for a layer of another kind: its weight has its channels on other axes."""
        module = model.get_submodule(name)
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            return None
        return cls(module, None if norm is None else model.get_submodule(norm))

    @property
    def can_scale_outputs(self) -> bool:
        """A norm without weights would undo the factor."""
        return self._norm is None or getattr(self._norm, "weight", None) is not None

    def outputs(self) -> Tensor:
        """Largest magnitude of each output channel's folded weights, shape (outputs,)."""
        return self._folded().flatten(1).abs().amax(1)

    def inputs(self) -> Tensor:
        """Largest magnitude of the folded weights that read each input channel, shape (inputs,)."""
        return self._grouped(self._folded()).abs().amax((1, 3)).flatten()

    def divide_outputs(self, factor: Tensor) -> None:
        """Divide what each output channel computes, (outputs,): in the norm where there is one."""
        source = self._module if self._norm is None else self._norm
        for parameter in (source.weight, source.bias):
            if isinstance(parameter, Tensor):
                parameter.div_(factor.reshape(-1, *[1] * (parameter.dim() - 1)))

    def multiply_inputs(self, factor: Tensor) -> None:
        """Multiply the weights that read each input channel, (inputs,)."""
        weight = self._weight()
        grouped = self._grouped(weight) * factor.reshape(self._groups, 1, -1, 1)
        weight.copy_(grouped.reshape(weight.shape))

    @property
    def _groups(self) -> int:
        return self._module.groups if isinstance(self._module, nn.modules.conv._ConvNd) else 1

    def _grouped(self, weight: Tensor) -> Tensor:
        """As (groups, outputs of a group, inputs of a group, window)."""
        return weight.reshape(self._groups, len(weight) // self._groups, weight.shape[1], -1)

    def _weight(self) -> Tensor:
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        return weight

    def _folded(self) -> Tensor:
        """The weight times what batch norm multiplies each output channel by."""
        weight = self._weight()
        if not isinstance(self._norm, nn.modules.batchnorm._BatchNorm) or self._norm.running_var is None:
            return weight
        gain = torch.rsqrt(self._norm.running_var + self._norm.eps)
        gain = gain if self._norm.weight is None else gain * self._norm.weight
        return weight * gain.reshape(-1, *[1] * (weight.dim() - 1))


@hookimpl
def autocompress_recoveries() -> list[type[Recovery]]:
    """Cross-layer equalization."""
    return [Equalization]
