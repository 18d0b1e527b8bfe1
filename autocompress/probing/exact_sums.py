"""Whether a device's integer layers add up right: codes that reach every limit, compared with exact arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.building.candidate import build
from autocompress.components import Capabilities, CompressedLayer, QuantizedTensor
from autocompress.measuring.device import Device
from autocompress.network.exporting import export
from autocompress.network.graph import BaseGraph, Layer
from autocompress.network.placement import place
from autocompress.policy import LayerPolicy, Policy
from autocompress.probing.probe_encodings import Encoding, encoded
from autocompress.tensors.compress import CompressedModel
from autocompress.tensors.module_weights import oriented
from autocompress.tensors.narrow_weights import narrowed
from autocompress.tensors.ranges import Range

LARGEST_CODE = 255

_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(16, 8, 3), (1, 16, 10)),
    "conv2d": (lambda: nn.Conv2d(16, 8, 3), (1, 16, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), (1, 16, 6, 6)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(16, 8, 2, stride=2), (1, 16, 5, 5)),
    "linear": (lambda: nn.Linear(64, 16), (1, 64)),
}


@dataclass(frozen=True)
class SumCheck:
    """A single layer whose inputs are all codes, every other one the largest.

    Attributes:
        weight: float32; some channels hold nothing but their largest weight, so that every sum of two products is extreme.
        inputs: whole numbers 0 .. 255.
    """

    module: nn.Module
    graph: BaseGraph
    layer: Layer
    weight: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, kind: str, folder: Path) -> SumCheck | None:
        """None for a kind that has no sums."""
        if kind not in _LAYERS:
            return None
        make, shape = _LAYERS[kind]
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randint(LARGEST_CODE + 1, shape, generator=generator).float()
        inputs.flatten()[::2], inputs.flatten()[1] = LARGEST_CODE, 0
        module = nn.Sequential(make())
        nn.init.zeros_(module[0].bias)  # type: ignore[arg-type]
        graph = export(module, inputs, folder / "sums.onnx")
        layer = next(iter(graph.layers.values()))
        weight = torch.randn(layer.shape, generator=generator)
        weight.movedim(layer.channel_axis, 0)[: layer.channels // 2] = 1.0
        return cls(module, graph, layer, weight, inputs)

    def errors(self, encoding: Encoding, capabilities: Capabilities, device: Device, folder: Path) -> tuple[float, float]:
        """Largest error with all bits, and with weights of 7 bits, in steps of an 8-bit output."""
        weight = encoded(self.weight, self.layer, encoding)
        wide, narrow = (self._error(w, encoding, capabilities, device, folder) for w in (weight, narrowed(weight, self.weight)))
        return wide, narrow

    def _error(
        self, weight: QuantizedTensor, encoding: Encoding, capabilities: Capabilities, device: Device, folder: Path
    ) -> float:
        exact = self._exact(weight)
        policy = Policy({self.layer.name: LayerPolicy("probe", encoding.bits, activation=encoding.mode)})
        quantized = place(self.graph, policy, capabilities).quantized
        grids = {self.layer.input: Range(1.0, 0), self.layer.output: Range.of(float(exact.min()), float(exact.max()))}
        bias = torch.zeros(self.layer.channels)
        compressed = CompressedModel(
            {self.layer.name: CompressedLayer(weight, bias)}, {name: grids[name] for name in quantized}
        )
        build(self.graph, policy, compressed, capabilities, folder / "sums-integer.onnx")
        np.save(folder / "sums.npy", self.inputs.numpy())
        given = device.outputs(folder / "sums-integer.onnx", folder / "sums.npy", 0, 1, 1)
        step = float(exact.max() - exact.min()) / LARGEST_CODE
        rounded = _on_grid(exact, grids[self.layer.output]) if self.layer.output in quantized else exact
        error = float((torch.from_numpy(given).double() - rounded).abs().max()) / step
        return error if math.isfinite(error) else math.inf

    def _exact(self, weight: QuantizedTensor) -> Tensor:
        """Whole numbers in float64 add up exactly below 2^53; then the scale of each channel."""
        exact = copy.deepcopy(self.module).double()
        layer = exact[0]  # type: ignore[index]
        values = oriented(weight.dequantize().double(), self.layer, layer)
        layer.weight.data.copy_(values)
        with torch.no_grad():
            found: Tensor = exact(self.inputs.double())
        return found


def _on_grid(values: Tensor, grid: Range) -> Tensor:
    codes = (values / grid.scale + grid.zero_point).round().clamp(0, grid.most)
    return (codes - grid.zero_point) * grid.scale
