"""Runs the FP32 file and the module on calibration data, and keeps ranges, input moments and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autocompress.components import Components, Observer
from autocompress.errors import ModelError, PluginError
from autocompress.guarding.plugin_call import calling, described, read_only
from autocompress.measuring.runner import load_session
from autocompress.network.graph import EMBEDDING, TRANSPOSED, BaseGraph, Layer, save
from autocompress.network.placement import quantizable
from autocompress.task import Task
from autocompress.tensors.stats import LayerStats

ACTIVATION_BITS = 8
GRADIENT_SAMPLES = 8
GRADIENT_BATCH = 32
WIDER_STEPS = 1.5
"""A grid is not centred where its steps would become so much wider: 3.5 dB, a little more than half a bit."""

SHARES = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})
"""Operators that give nothing below 0 or above 1, whatever range an observer joins their outputs to."""

POSITIONS = 128
"""Output positions of a convolution sampled in each image; 128 images give 16,384 patches for moments of up to 1,152 inputs."""


@dataclasses.dataclass(frozen=True)
class Range:
    """A grid of unsigned codes of 8 or 16 bits: `value = (code - zero_point) * scale`; 0 lies on it exactly.

    Attributes:
        signed: the zero point is the middle one, and a file has the codes less that.
    """

    scale: float
    zero_point: int
    bits: int = ACTIVATION_BITS
    signed: bool = False

    @property
    def most(self) -> int:
        """The largest code."""
        return int(2**self.bits) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the smallest and of the largest code."""
        return -self.zero_point * self.scale, (self.most - self.zero_point) * self.scale

    def centred(self) -> Range:
        """Signed codes around 0 for the same values; this one where none is negative, or the steps would become too wide."""
        half = int(2 ** (self.bits - 1))
        wider = max(self.zero_point / half, (self.most - self.zero_point) / (half - 1))
        if self.zero_point == 0 or wider > WIDER_STEPS:
            return self
        return Range(float(np.float32(self.scale * wider)), half, self.bits, signed=True)

    @classmethod
    def covering(cls, grids: Sequence[Range]) -> Range:
        """The grid of the same bits that covers all of these."""
        if len(grids) == 1:
            return grids[0]
        lows, highs = zip(*(grid.ends for grid in grids), strict=True)
        return cls.of(min(lows), max(highs), grids[0].bits)

    @classmethod
    def of(cls, low: float, high: float, bits: int = ACTIVATION_BITS) -> Range:
        """The grid that covers [min(low, 0), max(high, 0)]."""
        low, high = min(low, 0.0), max(high, 0.0)
        levels = 2**bits - 1
        scale = float(np.float32((high - low) / levels)) or 1.0
        return cls(scale, min(levels, max(0, round(-low / scale))), bits)


class _Moments:
    """Running sums over patches of one layer, apart for every other example, so that the halves tell how sure they are."""

    def __init__(self, groups: int, width: int) -> None:
        self._total = torch.zeros(2, groups, width)
        self._square = torch.zeros(2, groups, width, width)
        self._count = [0, 0]
        self._examples = 0

    def add(self, patches: Tensor, examples: int) -> None:
        """Add the patches (groups, n, d) of so many examples, equally many of each."""
        apart = patches.reshape(len(patches), examples, -1, patches.shape[2])  # (groups, examples, patches, d)
        for half in range(2):
            part = apart[:, (half - self._examples) % 2 :: 2].flatten(1, 2)
            self._total[half] += part.sum(dim=1)
            self._square[half] += part.transpose(1, 2) @ part
            self._count[half] += part.shape[1]
        self._examples += examples

    @property
    def mean(self) -> Tensor:
        """(groups, d)."""
        return self._total.sum(0) / sum(self._count)

    @property
    def second_moment(self) -> Tensor:
        """(groups, d, d)."""
        return self._square.sum(0) / sum(self._count)

    @property
    def shrinkage(self) -> Tensor:
        """Share of the covariance's squared distance from m I that is chance, shape (groups,); 1 where one half is empty.

        Two halves C1 and C2 are independent estimates, so a quarter of the squared difference between them is the expected
        squared error of their mean (Ledoit and Wolf 2004, theorem 2.1; there from single examples, but the patches of one image
        are not independent).
        """
        if not all(self._count):
            return torch.ones(len(self._total[0]))
        one, other = (_covariance(self._total[half], self._square[half], self._count[half]) for half in range(2))
        mean = (one + other) / 2
        level = mean.diagonal(dim1=1, dim2=2).mean(1)
        chance = (one - other).square().sum((1, 2)) / 4
        distance = (mean - level[:, None, None] * torch.eye(mean.shape[1])).square().sum((1, 2))
        return torch.where(distance > 0, chance / distance.clamp_min(1e-38), 0.0).clamp(max=1.0)


def _covariance(total: Tensor, square: Tensor, count: int) -> Tensor:
    mean = total / count
    return square / count - mean[:, :, None] * mean[:, None, :]


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without what no grid has: attention is masked with minus infinity, which its softmax reads as any low number."""
    kept = np.isfinite(values)
    return values if kept.all() else values[kept]


class Calibration:
    """Statistics of one task on one base graph; implements `StatsSource`."""

    def __init__(self, task: Task, graph: BaseGraph, components: Components, folder: Path, seed: int = 0) -> None:
        self._task, self._graph, self._components = task, graph, components
        self._folder, self._seed = folder, seed
        self._grids: dict[tuple[int, str], Mapping[str, Range]] = {}

    def stats(self, layer: Layer) -> LayerStats:
        """The statistics of a layer."""
        return LayerStats(layer, torch.from_numpy(self._graph.initializers[layer.weight].copy()), self)

    def observe(self) -> None:
        """Run the calibration data through the FP32 file now, rather than when a statistic is first asked for.

        Raises:
            PluginError: the configured observer fails, without which no trial could work.
        """
        _ = self.ranges

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Grid of 8 bits of each tensor that some policy may quantize, by the configured observer."""
        return self.grids(ACTIVATION_BITS)

    def grids(self, bits: int, observer: str | None = None) -> Mapping[str, Range]:
        """Grid of 8 or 16 bits of each tensor that some policy may quantize.

        Args:
            observer: one of `Components.observers`; None: the configured one.
        """
        key = bits, observer or self._components.observer.name
        if key not in self._grids:
            self._grids[key] = self._found_grids(*key)
        return self._grids[key]

    def _found_grids(self, bits: int, observer: str) -> dict[str, Range]:
        configured = self._components.observers[observer]
        with calling(configured, "range"):
            found = {name: watching.range(bits) for name, watching in self._observed[0][observer].items()}
            joined = {name: (float(low), float(high)) for name, (low, high) in configured.joined(found).items()}
        _check_ranges(configured, found, joined)
        shares = {op.output for op in self._graph.ops if op.op_type in SHARES}
        joined |= {name: (0.0, min(joined[name][1], 1.0)) for name in shares & joined.keys()}
        return {name: Range.of(*ends, bits) for name, ends in joined.items()}

    def input_mean(self, layer: Layer) -> Tensor:
        """Mean input patch: (groups, d); zeros for an embedding."""
        if layer.kind == EMBEDDING:
            return torch.zeros(1, layer.shape[1])
        return self._observed[1][layer.name].mean

    def input_second_moment(self, layer: Layer) -> Tensor:
        """Mean of x x^T over input patches: (groups, d, d); the identity for an embedding."""
        if layer.kind == EMBEDDING:
            return torch.eye(layer.shape[1])[None]
        return self._observed[1][layer.name].second_moment

    def input_shrinkage(self, layer: Layer) -> Tensor:
        """How far the input covariance must move towards a multiple of the identity: (groups,); 0 for an embedding."""
        return torch.zeros(1) if layer.kind == EMBEDDING else self._observed[1][layer.name].shrinkage

    def gradient_samples(self, layer: Layer) -> Tensor:
        """Gradients with respect to the folded weight: (R, *layer.shape)."""
        return self._gradients[layer.name].clone()

    def gradient_examples(self) -> int:
        """Examples that each gradient sample is the mean over."""
        return min(GRADIENT_BATCH, len(self._task.sets["calibration"]))

    @cached_property
    def _observed(self) -> tuple[dict[str, dict[str, Observer]], dict[str, _Moments]]:
        """Observers by name and tensor, and moments by layer, from one pass over the data."""
        names = quantizable(self._graph, self._components.target.capabilities())
        configured = self._components.observers
        observers = {
            which: {name: dataclasses.replace(one) for name in names}  # type: ignore[type-var]
            for which, one in configured.items()
        }
        moments: dict[str, _Moments] = {}
        for batch, values in enumerate(self._activations(names)):
            seen = {name: read_only(_finite(values[name])) for name in names}
            for which, watching in observers.items():
                with calling(configured[which], "update"):
                    for name, observer in watching.items():
                        observer.update(seen[name])
            for layer in self._graph.layers.values():
                if layer.kind != EMBEDDING:
                    self._add_moments(moments, layer, values[layer.input], batch)
        return observers, moments

    def _activations(self, names: tuple[str, ...]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Values of the named tensors, a batch at a time."""
        path = self._folder / "observed.onnx"
        save(_expose(self._graph.open(), names), path)
        session = load_session(self._components.target, path, threads=torch.get_num_threads())
        size = self._graph.batch or _batch_size(self._graph, self._task)
        for inputs, _ in self._task.sets["calibration"].batches(size):
            outputs = session([inputs.numpy()])[1:]
            yield dict(zip([name for name in names if name != "input"], outputs, strict=True)) | {"input": inputs.numpy()}
        path.unlink()

    def _add_moments(self, moments: dict[str, _Moments], layer: Layer, values: NDArray[np.float32], batch: int) -> None:
        patches = sample_patches(torch.from_numpy(values), layer, self._seed + batch)
        if layer.name not in moments:
            moments[layer.name] = _Moments(len(patches), patches.shape[2])
        moments[layer.name].add(patches, len(values))

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        modules = {name: module_of(self._task.model, name) for name in self._graph.layers}
        samples: dict[str, list[Tensor]] = {name: [] for name in modules}
        with _all_trainable(self._task.model) as model:
            for inputs, targets in self._resamples():
                model.zero_grad(set_to_none=True)
                self._task.loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
                for name, module in modules.items():
                    samples[name].append(oriented(_gradient(module), self._graph.layers[name], module))
        return {name: _unfolded(torch.stack(found), self._fold(name, modules[name])) for name, found in samples.items()}

    def _resamples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Bootstrap batches of the calibration set."""
        examples = self._task.sets["calibration"]
        random = np.random.default_rng(self._seed)
        for _ in range(GRADIENT_SAMPLES):
            chosen = random.integers(len(examples), size=self.gradient_examples())
            yield torch.from_numpy(examples.inputs[chosen]), torch.from_numpy(examples.targets[chosen])

    def _fold(self, name: str, module: torch.nn.Module) -> Tensor:
        """What batch norm multiplied each channel by when it was folded, shaped to divide a gradient of the weight."""
        layer = self._graph.layers[name]
        factor = fold_factor(layer, torch.from_numpy(self._graph.initializers[layer.weight].copy()), module)
        return factor.reshape([-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.shape))])


def _check_ranges(observer: Observer, found: Mapping[str, object], joined: Mapping[str, tuple[float, float]]) -> None:
    """One range for each tensor, each two finite numbers in their order."""
    if found.keys() != joined.keys():
        raise PluginError(
            f"{described(observer)}: joined gives ranges of {len(joined)} tensors; expected the same {len(found)}"
        )
    for name, (low, high) in joined.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise PluginError(f"{described(observer)}: tensor {name}: range ({low}, {high}); expected finite low <= high")


@contextmanager
def _all_trainable(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The model with gradients for every parameter: a frozen layer is compressed like any other."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.requires_grad_(True)
    try:
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)


def _unfolded(gradients: Tensor, factor: Tensor) -> Tensor:
    """Gradients of the folded weight; a channel that batch norm switched off has none."""
    return torch.where(factor == 0, 0.0, gradients / factor)


def module_of(model: torch.nn.Module, layer: str) -> torch.nn.Module:
    """The submodule that a layer of the file came from.

    Raises:
        ModelError: there is none: the weight is a bare parameter or was made by the exporter.
    """
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise ModelError(f"layer {layer}: no submodule of this name holds its weight; gradients cannot be matched") from error


def fold_factor(layer: Layer, folded: Tensor, module: torch.nn.Module) -> Tensor:
    """Factor of each output channel between the module's weight and the file's, shape (channels,).

    Raises:
        ModelError: the module's weight is not the file's weight up to such a factor.
    """
    weight = getattr(module, "weight", None)
    weight = oriented(weight, layer, module) if isinstance(weight, Tensor) else None
    if weight is None or weight.shape != folded.shape:
        raise ModelError(f"layer {layer.name}: module and exported weight differ in shape; gradients cannot be matched")
    ours, theirs = (part.detach().movedim(layer.channel_axis, 0).flatten(1) for part in (folded, weight))
    norm = theirs.square().sum(1)
    return torch.where(norm > 0, (ours * theirs).sum(1) / norm.clamp_min(1e-30), torch.ones_like(norm))


def oriented(tensor: Tensor, layer: Layer, module: torch.nn.Module) -> Tensor:
    """A tensor of the shape of the module's weight in the file's shape, and back: some linear weights are transposed."""
    return tensor.T if isinstance(module, torch.nn.Linear) and layer.channel_axis == 1 else tensor


def _gradient(module: torch.nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.grad.detach().clone() if weight.grad is not None else torch.zeros_like(weight)


def _expose(model: ir.Model, names: tuple[str, ...]) -> ir.Model:
    """Make the named tensors outputs, after the model's own."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        if name == "input":
            continue
        value = values[name]
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if value.is_graph_output():
            value = _copied(model, value)
        model.graph.outputs.append(value)
    return model


def _copied(model: ir.Model, value: ir.Value) -> ir.Value:
    """A graph may not list one tensor twice among its outputs."""
    node = ir.node("Identity", [value], name=f"{value.name}_copy")
    node.outputs[0].name = f"{value.name}_copy"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(node)
    return node.outputs[0]


def _batch_size(graph: BaseGraph, task: Task) -> int:
    """Examples at a time, so that all activations together stay near 100 MB."""
    macs = sum(layer.macs for layer in graph.layers.values())
    pixels = math.prod(task.example_input.shape[1:])
    return 32 if macs < 100e6 and pixels < 50_000 else 4


def sample_patches(values: Tensor, layer: Layer, seed: int = 0) -> Tensor:
    """Inputs of the layer's products: (groups, n, d), one example's after another's.

    Args:
        values: (N, channels, *space) for a convolution, (N, ..., features) for a linear layer.
        seed: chooses the output positions of a convolution, the same ones for all examples.
    """
    if layer.kind == "linear":
        return values.reshape(1, -1, values.shape[-1])
    if layer.kind == TRANSPOSED:
        return _mirrored(sample_patches(*_as_convolution(values, layer), seed), layer)
    padded = functional.pad(values, _torch_pads(layer.pads)) if any(layer.pads) else values
    columns = padded.flatten(2).index_select(2, _places(padded.shape[2:], layer, seed).flatten())  # (N, channels, n * window)
    window = math.prod(layer.shape[2:])
    columns = columns.reshape(len(values), layer.groups, -1, columns.shape[2] // window, window)
    return columns.permute(1, 0, 3, 2, 4).reshape(layer.groups, -1, columns.shape[2] * window)


def _as_convolution(values: Tensor, layer: Layer) -> tuple[Tensor, Layer]:
    """A transposed convolution is a plain one with a mirrored window over its input, spread by zeros."""
    spread = values
    for axis, stride in enumerate(layer.strides, start=2):
        length = (spread.shape[axis] - 1) * stride + 1
        wide = spread.new_zeros(*spread.shape[:axis], length, *spread.shape[axis + 1 :])
        spread = wide.index_copy_(axis, torch.arange(0, length, stride), spread)
    reach = [dilation * (size - 1) for size, dilation in zip(layer.shape[2:], layer.dilations, strict=True)]
    pads = tuple(extent - cut for extent, cut in zip([*reach, *reach], layer.pads, strict=True))
    return spread, dataclasses.replace(layer, kind="conv2d", strides=(1,) * len(layer.strides), pads=pads)


def _mirrored(patches: Tensor, layer: Layer) -> Tensor:
    """Reverse each window: patches of shape (groups, n, channels * window)."""
    windows = patches.reshape(*patches.shape[:2], -1, math.prod(layer.shape[2:]))
    return windows.flip(-1).flatten(2)


def _torch_pads(pads: tuple[int, ...]) -> list[int]:
    """ONNX lists all begins, then all ends, first axis first; torch lists (begin, end) pairs, last axis first."""
    half = len(pads) // 2
    return [size for axis in reversed(range(half)) for size in (pads[axis], pads[axis + half])]


def _positions(size: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Indices that each output position reads along one axis: (outputs, kernel)."""
    outputs = (size - (kernel - 1) * dilation - 1) // stride + 1
    return torch.arange(outputs)[:, None] * stride + torch.arange(kernel) * dilation


def _places(space: Sequence[int], layer: Layer, seed: int) -> Tensor:
    """Flat indices into the padded space that at most POSITIONS random outputs read: (n, window)."""
    axes = [_positions(*axis) for axis in zip(space, layer.shape[2:], layer.strides, layer.dilations, strict=True)]
    counts = [len(axis) for axis in axes]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.unravel_index(torch.randperm(math.prod(counts), generator=generator)[:POSITIONS], counts)
    flat = torch.zeros(len(chosen[0]), 1, dtype=torch.int64)
    for size, axis, place in zip(space, axes, chosen, strict=True):
        flat = (flat[:, :, None] * size + axis[place][:, None, :]).flatten(1)
    return flat
