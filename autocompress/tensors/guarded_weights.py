"""Quantizers and pruners as the core calls them: they get copies, and what they return is checked before a file is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autocompress.components import Components, CompressedLayer, Pruner, QuantizedTensor, Quantizer
from autocompress.errors import PluginError
from autocompress.guarding.plugin_call import calling, described
from autocompress.network.graph import Layer
from autocompress.tensors.stats import LayerStats


@dataclass
class GuardedQuantizer(Quantizer):
    """The configured quantizer, trusted with nothing but its own computation."""

    quantizer: Quantizer

    def __post_init__(self) -> None:
        self.name = self.quantizer.name  # type: ignore[misc]
        self.compensates = self.quantizer.compensates  # type: ignore[misc]

    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """Its widths, each 2 to 8."""
        with calling(self.quantizer, f"bit_widths of layer {layer.name}"):
            widths = list(self.quantizer.bit_widths(layer))
        if wrong := [bits for bits in widths if not (isinstance(bits, int) and 2 <= bits <= 8)]:
            raise PluginError(f"{described(self.quantizer)}: layer {layer.name}: offers {wrong[0]} bits; expected 2 to 8")
        return widths

    def blocks(self, layer: Layer) -> bool:
        """As it says."""
        with calling(self.quantizer, f"blocks of layer {layer.name}"):
            return self.quantizer.blocks(layer)

    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Its codes, when they are what they must be."""
        with calling(self.quantizer, f"quantize layer {stats.layer.name}"):
            found = self.quantizer.quantize(weight.clone(), bits, stats.copied(), None if mask is None else mask.clone())
        _refuse(f"{described(self.quantizer)}: layer {stats.layer.name}", code_faults(found, weight, stats.layer, mask))
        if found.bits != bits:
            raise PluginError(f"{described(self.quantizer)}: layer {stats.layer.name}: {found.bits} bits; expected {bits}")
        return found


@dataclass
class GuardedPruner(Pruner):
    """The configured pruner, likewise."""

    pruner: Pruner

    def __post_init__(self) -> None:
        self.name = self.pruner.name  # type: ignore[misc]

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """One finite score for each weight."""
        with calling(self.pruner, f"score of layer {stats.layer.name}"):
            found = self.pruner.score(weight.clone(), stats.copied())
        return self._checked("scores", found, tuple(weight.shape), stats)

    def channel_score(self, weight: Tensor, stats: LayerStats, axis: int) -> Tensor:
        """One finite score for each slice."""
        with calling(self.pruner, f"channel_score of layer {stats.layer.name}"):
            found = self.pruner.channel_score(weight.clone(), stats.copied(), axis)
        return self._checked("channel scores", found, (weight.shape[axis],), stats)

    def update(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """Finite weights, 0 where they were removed."""
        with calling(self.pruner, f"update of layer {stats.layer.name}"):
            found = self.pruner.update(weight.clone(), mask.clone(), stats.copied())
        updated = self._checked("updated weights", found, tuple(weight.shape), stats)
        if updated[~mask].any():
            self._refuse(stats, "updated weights are not 0 where the mask removes them")
        return updated

    def _checked(self, what: str, found: Tensor, shape: tuple[int, ...], stats: LayerStats) -> Tensor:
        self._refuse(stats, *float_faults(what, found, shape))
        return found

    def _refuse(self, stats: LayerStats, *faults: str) -> None:
        _refuse(f"{described(self.pruner)}: layer {stats.layer.name}", faults)


def guarded(components: Components) -> Components:
    """The components with every quantizer and pruner guarded."""
    quantizers = {name: GuardedQuantizer(quantizer) for name, quantizer in components.quantizers.items()}
    return replace(components, quantizers=quantizers, pruners={n: GuardedPruner(p) for n, p in components.pruners.items()})


def check_repaired(who: str, found: CompressedLayer, given: CompressedLayer, stats: LayerStats) -> CompressedLayer:
    """What a recovery made of a layer, when it fits where the layer was.

    Args:
        who: whom the message names.

    Raises:
        PluginError: it does not.
    """
    if not isinstance(found, CompressedLayer):
        _refuse(who, [f"returned {type(found).__name__}; expected a CompressedLayer"])
    if isinstance(found.weight, QuantizedTensor):
        faults = code_faults(found.weight, given.dense(), stats.layer, found.mask)
    else:
        faults = float_faults("weights", found.weight, tuple(given.dense().shape))
    if found.bias is not None:
        faults += float_faults("biases", found.bias, (stats.layer.channels,))
    _refuse(f"{who}: layer {stats.layer.name}", faults)
    return found


def float_faults(what: str, found: object, shape: tuple[int, ...]) -> list[str]:
    """Why something is not a tensor of finite float32 numbers of this shape."""
    if not isinstance(found, Tensor):
        return [f"{what} are {type(found).__name__}; expected a tensor"]
    if found.dtype != torch.float32 or tuple(found.shape) != shape:
        return [f"{what} are {_written(found)}; expected {_name(torch.float32)} {shape}"]
    return [] if bool(found.isfinite().all()) else [f"{what} hold NaN or infinity"]


def code_faults(found: object, weight: Tensor, layer: Layer, mask: Tensor | None) -> list[str]:
    """Why something is not codes for a weight; see `QuantizedTensor`."""
    if not isinstance(found, QuantizedTensor):
        return [f"returned {type(found).__name__}; expected a QuantizedTensor"]
    faults = _wrong_form(found, weight, layer) or [*_wrong_codes(found), *_wrong_scales(found)]
    if not faults and mask is not None and bool(found.numbers[~mask].any()):
        return ["codes are not 0 where the mask removes weights"]
    return faults


def _wrong_form(found: QuantizedTensor, weight: Tensor, layer: Layer) -> list[str]:
    """Types and shapes."""
    scales = _scale_shapes(found, weight, layer)
    tensors: Mapping[str, tuple[object, torch.dtype, Sequence[tuple[int, ...]]]] = {
        "codes": (found.codes, torch.int8, [tuple(weight.shape)]),
        "scale": (found.scale, torch.float32, scales),
        "zero_point": (found.zero_point, torch.int8, [tuple(getattr(found.scale, "shape", ()))]),
    }
    faults = [
        f"{name} is {_written(tensor)}; expected {_name(dtype)} {' or '.join(map(str, shapes))}"
        for name, (tensor, dtype, shapes) in tensors.items()
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tuple(tensor.shape) not in shapes
    ]
    if not faults and found.scale.dim() and found.axis != layer.channel_axis:
        return [f"the scale is along axis {found.axis}; expected {layer.channel_axis}"]
    return faults


def _scale_shapes(found: QuantizedTensor, weight: Tensor, layer: Layer) -> list[tuple[int, ...]]:
    if found.group_size is None:
        return [(), (layer.channels,)]
    inputs = weight.shape[1 - layer.channel_axis] if weight.dim() == 2 else 0
    return [(layer.channels, math.ceil(inputs / max(1, found.group_size)))]


def _wrong_codes(found: QuantizedTensor) -> list[str]:
    """Codes, zero points and codebook outside of what so many bits can say."""
    low, high = -(2 ** (found.bits - 1)), 2 ** (found.bits - 1) - 1
    faults = [] if _is_between(found.zero_point, low, high) else [f"zero_point is outside of {low} .. {high}"]
    if found.codebook is None:
        return faults if _is_between(found.codes, low, high) else [*faults, f"codes are outside of {low} .. {high}"]
    if found.codebook.dtype != torch.int8 or not 1 <= found.codebook.numel() <= 2**found.bits:
        return [*faults, f"codebook is {_written(found.codebook)}; expected {_name(torch.int8)} (1 .. {2**found.bits},)"]
    return faults if _is_between(found.codes, 0, len(found.codebook) - 1) else [*faults, "codes name no entry of the codebook"]


def _wrong_scales(found: QuantizedTensor) -> list[str]:
    fine = bool((found.scale.isfinite() & (found.scale > 0)).all())
    return [] if fine else ["scale is not positive and finite everywhere"]


def _is_between(values: Tensor, low: int, high: int) -> bool:
    return not values.numel() or (int(values.min()) >= low and int(values.max()) <= high)


def _written(found: object) -> str:
    return f"{_name(found.dtype)} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse(who: str, faults: Sequence[str]) -> None:
    if faults:
        raise PluginError(f"{who}: {faults[0]}")
