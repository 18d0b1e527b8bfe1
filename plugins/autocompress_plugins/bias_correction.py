"""Recovery `bias_correction`: the mean of every channel of a finalist is that of FP32 again, layer after layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress import CompressedLayer, Recovery, hookimpl
from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autocompress import CompressedModel, Layer, Recoverable

Hook = Callable[[nn.Module, object, Tensor], Tensor | None]


@dataclass
class BiasCorrection(Recovery):
    """Empirical bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2 and appendix D), for finalists.

    The bias of each layer moves by E[y_fp] - E[y_q], the mean outputs of its channels, in the order of execution: later layers
    see what is already corrected, with activations rounded as in the file. Compared to `moments`, which sees one layer at a
    time, this also removes what the errors of earlier layers and of the activations add up to.

    Needs calibration inputs, no labels; costs two passes over them. All examples pass through the module together, so memory
    is that of the largest activations of so many examples.

    Attributes:
        images: calibration examples.
    """

    name = "bias_correction"

    images: int = 64

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"recover.bias_correction.images={self.images}: expected at least 1")

    def recover(self, candidate: Recoverable) -> CompressedModel:
        """Move the biases; weights, scales and masks stay."""
        if candidate.graph.batch == 1:
            candidate.progress.note("bias_correction: left out, because the model takes one example at a time")
            return candidate.compressed
        inputs = torch.from_numpy(candidate.task.sets["calibration"].inputs[: self.images])
        layers = [layer for layer in candidate.graph.layers.values() if _takes_bias(layer, candidate.compressed.layers)]
        wanted: dict[str, Tensor] = {}
        _run(candidate, candidate.original(), inputs, {layer.name: _recording(layer, wanted) for layer in layers})
        shifts: dict[str, Tensor] = {}
        _run(candidate, candidate.folded(), inputs, {layer.name: _correcting(layer, wanted, shifts) for layer in layers})
        moved = {name: _moved(candidate.compressed.layers[name], shift) for name, shift in shifts.items()}
        return replace(candidate.compressed, layers={**candidate.compressed.layers, **moved})


def _takes_bias(layer: Layer, compressed: Mapping[str, CompressedLayer]) -> bool:
    """Whether the layer was compressed and the file can store a bias for it."""
    if layer.name not in compressed or layer.kind == "embedding":
        return False
    return compressed[layer.name].bias is not None or layer.kind != "linear"


def _run(candidate: Recoverable, module: nn.Module, inputs: Tensor, hooks: dict[str, Hook]) -> None:
    """Pass the inputs through a module once."""
    for name, hook in hooks.items():
        module.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        module(inputs)


def _mean(layer: Layer, output: Tensor) -> Tensor:
    """Mean of each channel, shape (channels,); the channels of a matrix product are on the last axis."""
    return output.movedim(-1 if layer.kind == "linear" else 1, 0).flatten(1).mean(1)


def _recording(layer: Layer, means: dict[str, Tensor]) -> Hook:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        means[layer.name] = _mean(layer, output)

    return hook


def _correcting(layer: Layer, wanted: dict[str, Tensor], shifts: dict[str, Tensor]) -> Hook:
    """Corrects on the spot, so that the layers after this one see it."""

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        shifts[layer.name] = shift = wanted[layer.name] - _mean(layer, output)
        return output + (shift if layer.kind == "linear" else shift.reshape(-1, *[1] * (output.dim() - 2)))

    return hook


def _moved(layer: CompressedLayer, shift: Tensor) -> CompressedLayer:
    return replace(layer, bias=shift if layer.bias is None else layer.bias + shift)


@hookimpl
def autocompress_recoveries() -> list[type[Recovery]]:
    """Bias correction."""
    return [BiasCorrection]
