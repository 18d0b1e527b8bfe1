"""One block that learns how its weights are rounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress import CompressedLayer
from autocompress_plugins.adaround.rounding import SoftRounding

if TYPE_CHECKING:
    from autocompress import Recoverable

WARM_UP = 0.2
"""Share of the steps without rounding in the loss (as in the authors' code)."""

STEP_VALUES = 2**17
"""Output values that one step compares: a few large maps or many small ones cost about the same."""

LARGEST_BATCH = 32


class Recipe(Protocol):
    """What the reconstruction needs of the configuration; see `AdaRound`."""

    block_layers: int
    images: int
    iterations: int
    learning_rate: float
    bias_learning_rate: float
    rounding_weight: float
    seconds: float


@dataclass(frozen=True)
class Call:
    """The arguments that a module was called with, for a batch; parts of the batch can be computed.

    Attributes:
        forward: the module's own.
        size: examples; tensors with another first axis go to each part as they are.
    """

    forward: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int

    def part(self, rows: Tensor) -> Tensor:
        """The output for some of the examples."""

        def chosen(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == self.size else value

        return self.forward(*map(chosen, self.args), **{name: chosen(value) for name, value in self.kwargs.items()})


@dataclass
class Schedule:
    """How far the learning is: by its steps, or by the time where that will run out first."""

    steps: int
    seconds: float
    start: float = field(default_factory=time.monotonic)

    def done(self, step: int) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(step / self.steps, (time.monotonic() - self.start) / max(self.seconds, 1e-9)))


class Block:
    """The layers of one unit, with soft weights from `attach` to `detach`.

    Args:
        module: folded; its layers are changed in place.
        layers: names of those that learn.
    """

    def __init__(
        self, candidate: Recoverable, module: nn.Module, layers: list[str], weights: Mapping[str, CompressedLayer]
    ) -> None:
        self._candidate, self._module, self._weights = candidate, module, weights
        self._roundings = {name: self._attached(name) for name in layers}

    def learn(self, call: Call, target: Tensor, recipe: Recipe, seconds: float, random: torch.Generator) -> float:
        """Learn to give `target`, shape (N, ...), from a call's inputs; the last step's error as a share of the variance."""
        optimizer = self._optimizer(recipe, float(target.std()))
        schedule, variance = Schedule(recipe.iterations, seconds), target.var().clamp_min(1e-12)
        size = min(call.size, LARGEST_BATCH, max(2, STEP_VALUES // target[0].numel()))
        error, step = torch.zeros(()), 0
        while (done := schedule.done(step)) < 1:
            rows = torch.randperm(call.size, generator=random)[:size]
            error = (call.part(rows) - target[rows]).square().mean() / variance
            optimizer.zero_grad()
            (error + recipe.rounding_weight * self._undecided(done)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        return float(error.detach())

    def detach(self) -> dict[str, CompressedLayer]:
        """Round the weights for good; the layers as they are stored now."""
        return {name: self._detached(name, rounding) for name, rounding in self._roundings.items()}

    def _attached(self, name: str) -> SoftRounding:
        stored, weight = self._candidate.compressed.layers[name], self._weights[name].dense()
        rounding = SoftRounding(stored, weight, lambda tensor: self._candidate.oriented(name, tensor))
        part = self._module.get_submodule(name)
        if stored.bias is not None:
            change = stored.dense() - rounding.weight().detach()
            part.bias = nn.Parameter(stored.bias + self._mean_output(name, change))  # the mean output stays as it was
        parametrize.register_parametrization(part, "weight", rounding, unsafe=True)
        return rounding

    def _mean_output(self, name: str, weight: Tensor) -> Tensor:
        """What a weight of the layer's shape gives on average, shape (channels,)."""
        stats = self._candidate.stats(name).cut(self._candidate.cuts(name))
        rows = weight.movedim(stats.layer.channel_axis, 0).flatten(1)
        group = torch.arange(len(rows)) // max(1, len(rows) // stats.layer.groups)
        return (rows * stats.input_mean[group]).sum(1)

    def _optimizer(self, recipe: Recipe, spread: float) -> torch.optim.Optimizer:
        variables = [rounding.variable for rounding in self._roundings.values()]
        biases = [self._module.get_submodule(name).bias for name in self._roundings if self._has_bias(name)]
        groups: list[dict[str, Any]] = [{"params": variables, "lr": recipe.learning_rate}]
        if biases:
            groups.append({"params": biases, "lr": recipe.bias_learning_rate * spread})
        return torch.optim.Adam(groups)

    def _has_bias(self, name: str) -> bool:
        return self._candidate.compressed.layers[name].bias is not None

    def _undecided(self, done: float) -> Tensor:
        if done < WARM_UP:
            return torch.zeros(())
        share = (done - WARM_UP) / (1 - WARM_UP)
        return torch.stack([rounding.undecided(share) for rounding in self._roundings.values()]).mean()

    def _detached(self, name: str, rounding: SoftRounding) -> CompressedLayer:
        part, stored = self._module.get_submodule(name), self._candidate.compressed.layers[name]
        parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)
        codes = rounding.decided()
        part.weight = nn.Parameter(self._candidate.oriented(name, codes.dequantize()), requires_grad=False)
        bias = part.bias.detach().clone() if isinstance(part.bias, Tensor) and self._has_bias(name) else stored.bias
        return replace(stored, weight=codes, bias=bias)
