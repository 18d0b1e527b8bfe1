"""What a plugin can bring: small abstract classes, each with one to three methods.

A component is a plain dataclass whose fields are its Hydra configuration (scalars, Enum, list, nested dataclass) and whose
class attribute `name` is how configs, policies and reports call it. The core does the rest: caching, lowering, tracking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from autocompress.transport import LocalTransport, Transport

if TYPE_CHECKING:
    import optuna
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from autocompress.building.recovery import Recoverable
    from autocompress.network.graph import Layer, LayerPair
    from autocompress.policy import Activation
    from autocompress.problem import Problem
    from autocompress.tensors.compress import CompressedModel
    from autocompress.tensors.stats import LayerStats

    Array = NDArray[np.generic]
    Session = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class QuantizedTensor:
    """Integer codes and how to read them: `value = (level - zero_point) * scale`, where a code is its own level or names one.

    Attributes:
        codes: int8, the weight's shape, each within the signed range of `bits` bits; with a codebook, an index into it.
        scale: float32, positive: shape (channels,) along `axis`, () for the whole tensor, or (channels, blocks) when each block
            of `group_size` neighbouring inputs of a matrix has its own.
        zero_point: int8, the shape of `scale`.
        axis: the axis of `scale`; ignored when `scale` has shape ().
        bits: 2 to 8.
        codebook: int8 levels in ascending order, shape (2 ** bits,) or fewer; None: codes are levels.
        group_size: inputs that share a scale; None: all inputs of a channel do.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int
    bits: int
    codebook: Tensor | None = None
    group_size: int | None = None

    @property
    def levels(self) -> Tensor:
        """The int8 numbers that an integer kernel computes with; shape of `codes`."""
        return self.codes if self.codebook is None else self.codebook[self.codes.long()]

    @property
    def numbers(self) -> Tensor:
        """Levels without their zero points: what each weight is in units of its scale, int32; shape of `codes`."""
        return self.levels.int() - self._spread(self.zero_point.int())

    def dequantize(self) -> Tensor:
        """The float32 values that the codes stand for; shape of `codes`."""
        return self.numbers.float() * self._spread(self.scale)

    def rounded(self, weight: Tensor) -> QuantizedTensor:
        """The nearest values to another weight, float32 of the same shape, on this very grid."""
        steps = weight / self._spread(self.scale) + self._spread(self.zero_point.float())
        if self.codebook is None:
            codes = steps.round().clamp(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        else:
            import torch

            middles = (self.codebook[1:].float() + self.codebook[:-1].float()) / 2
            codes = torch.bucketize(steps.contiguous(), middles)
        return replace(self, codes=codes.to(self.codes.dtype))

    def _spread(self, parameter: Tensor) -> Tensor:
        """Scale or zero point in a shape that broadcasts over the codes."""
        if parameter.dim() == 2 and self.group_size is not None:
            wide = parameter.repeat_interleave(self.group_size, dim=1)[:, : self.codes.shape[1 - self.axis]]
            return wide if self.axis == 0 else wide.T
        shape = [1] * self.codes.dim()
        if parameter.dim():
            shape[self.axis] = -1
        return parameter.reshape(shape)


@dataclass(frozen=True)
class CompressedLayer:
    """What is stored for one layer.

    Attributes:
        weight: codes, or float32 values.
        bias: float32, shape (channels,); None when the layer has none and needs none.
        mask: bool, shape of the weight; None when no single weights were removed.
    """

    weight: QuantizedTensor | Tensor
    bias: Tensor | None
    mask: Tensor | None = None

    def dense(self) -> Tensor:
        """The float32 weight that the file computes with."""
        return self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight


class Component(ABC):
    """Anything that a plugin registers under a name."""

    name: ClassVar[str]


class Quantizer(Component):
    """Turns a weight into integer codes."""

    compensates: ClassVar[bool] = False
    """Whether weights move to make up for what others lose, so that one may move by more than a step of its scale."""

    @abstractmethod
    def bit_widths(self, layer: Layer) -> Sequence[int]:
        """Bit-widths (2 to 8) that this quantizer offers for the layer; empty: it does not handle such a layer."""

    def blocks(self, layer: Layer) -> bool:
        """Whether blocks of the layer's inputs get scales of their own; no integer kernel takes them: it computes in float."""
        return False

    @abstractmethod
    def quantize(self, weight: Tensor, bits: int, stats: LayerStats, mask: Tensor | None = None) -> QuantizedTensor:
        """Codes for `weight` (float32, any shape; output channels on `stats.layer.channel_axis`).

        Args:
            mask: bool, the weight's shape; entries that are False must decode to exactly 0.
        """


class Pruner(Component):
    """A criterion: which weights matter. Where and how much is cut is decided outside of it."""

    @abstractmethod
    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Importance of each weight: float32, the weight's shape, higher is kept."""

    def channel_score(self, weight: Tensor, stats: LayerStats, axis: int) -> Tensor:
        """Importance of each slice of the weight along `axis`: float32, shape (weight.shape[axis],), higher is kept.

        A channel is a slice along the channel axis of the layer that gives it, and along the other axis of each layer that
        reads it. By default the mean of its weights' scores; scores of one layer are compared, so their unit does not matter.
        """
        return self.score(weight, stats).movedim(axis, 0).flatten(1).mean(1)

    def update(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """The weights that are left, after any compensation; entries where `mask` is False must be 0.

        Called for single weights, and for a layer that reads removed channels: the mask is then False for whole inputs.
        """
        return weight * mask


class Recovery(Component):
    """Gives back accuracy that compression took, at one or several of three moments; the default does nothing.

    A candidate passes through the configured recoveries in their order.
    """

    seconds: float | None = None
    """Time limit of `recover` for one finalist, where it has one: a field of its configuration. It then also keeps to
    `Recoverable.seconds`, which may be less, and trials leave time for it (`search.timeout`). None: it takes what it takes."""

    def prepare(self, model: nn.Module, example: Tensor, pairs: Sequence[LayerPair]) -> nn.Module:
        """Called once, before anything is measured: a module that computes the same and compresses better.

        Args:
            example: one input batch.
            pairs: layers of which the second is the only reader of the first, with nothing but an activation between them.
        """
        return model

    def repair(self, compressed: CompressedLayer, stats: LayerStats, cuts: Mapping[int, Tensor]) -> CompressedLayer:
        """Called for each layer that a policy changes, once for each option, before the file is written. Must be fast.

        Args:
            stats: of the whole layer.
            cuts: axis of the weight to the indices that are left; empty: the layer has all its channels.
        """
        return compressed

    def recover(self, candidate: Recoverable) -> CompressedModel:
        """Called for finalists only. What is returned is built and measured again, and wins only where it measures better."""
        return candidate.compressed


class Observer(Component):
    """Finds the range of one activation tensor. A fresh copy of a configured instance watches each tensor."""

    @abstractmethod
    def update(self, batch: NDArray[np.float32]) -> None:
        """See the tensor's values on one calibration batch (any shape)."""

    @abstractmethod
    def range(self, bits: int) -> tuple[float, float]:
        """(low, high) that `bits` bits shall cover; low <= 0 <= high is enforced by the caller."""

    def joined(self, ranges: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
        """The final (low, high) of each tensor by name, given what each copy found; by default just that."""
        return ranges


class Metric(Component):
    """A quality figure: larger is better.

    It is computed from statistics per example, so that subsets, paired intervals and resampling need no second run.
    """

    against_reference: bool = False
    """Whether `expected` is the FP32 file's output instead of the targets."""

    percent: bool = True
    """Whether a value is a share, 0 to 1: it is shown in per cent, and its changes in points (0.01 is one point)."""

    class_scores: bool = False
    """Whether outputs are scores of classes, shape (N, classes): labels and the top choice can be checked then."""

    @abstractmethod
    def statistics(self, outputs: Array, expected: Array) -> NDArray[np.float64]:
        """One row for each example: shape (N,) or (N, k). `outputs` is the model's first output, shape (N, ...)."""

    def value(self, statistics: NDArray[np.float64]) -> float:
        """The figure for the examples whose statistics are given; by default their mean."""
        return float(np.mean(statistics))

    @property
    def is_mean(self) -> bool:
        """Whether the value is just that mean."""
        return type(self).value is Metric.value


class Sampler(Component):
    """Makes the Optuna sampler that proposes policies."""

    @abstractmethod
    def create(self, problem: Problem, seed: int) -> optuna.samplers.BaseSampler:
        """A sampler that depends on nothing but the problem, the seed and the study: it is made anew when a search resumes."""


class Tracker(Component):
    """Something that is told about trials; its methods implement the hooks `autocompress_trial_finished` and so on."""

    def reach(self, folder: Path) -> str:
        """Words for where it would keep a study of this output folder; writes nothing.

        Raises:
            OSError: it cannot be written to, or not be reached.
        """
        return "ready"


@dataclass(frozen=True)
class Capabilities:
    """What a runtime runs fast and what it expands when it loads a file.

    Attributes:
        containers: stored bits that a weight can have, per layer kind, for example {"conv2d": (4, 8)}.
        activations: how each layer kind with a quantized weight may compute: `static` (integer, fixed ranges), `dynamic`
            (integer, the input's range is found at run time), `float` (only the weight is stored in codes). A kind that is not
            named: `static`.
        codebooks: whether codes that name entries of a table are expanded at load.
        group_sizes: layer kinds whose weights may have one scale for each block of inputs, when they compute in float.
        fused_ops: ONNX operators that take a convolution's sums in float, as a part of its integer kernel or by themselves: the
            output before them needs no range.
        integer_ops: ONNX operators without weights that have an integer kernel with an output range of its own.
        passthrough_ops: ONNX operators that only move values, so that the output keeps the input's scale.
        moves_codes: whether those move codes also where no quantizer follows them.
        centred: layer kinds and ONNX operators whose integer kernel is fast for signed inputs on a grid around 0; they get
            those that no layer of another kind reads.
        joining_ops: ONNX operators that join tensors, integer where all of those and the output have one scale.
        packed_sparse: whether a bit mask plus packed non-zeros is expanded at load and not at each inference.
        minimum_runtime: runtime to the lowest version that runs the files.
        barriers: whether a float operator between quantized tensors needs one before it to stay float.
    """

    containers: Mapping[str, tuple[int, ...]]
    integer_ops: frozenset[str]
    passthrough_ops: frozenset[str]
    packed_sparse: bool = False
    activations: Mapping[str, tuple[Activation, ...]] = field(default_factory=dict)
    codebooks: bool = False
    group_sizes: frozenset[str] = frozenset()
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    barriers: bool = True
    fused_ops: frozenset[str] = frozenset()
    joining_ops: frozenset[str] = frozenset()
    moves_codes: bool = False
    centred: frozenset[str] = frozenset()

    def modes(self, kind: str) -> tuple[Activation, ...]:
        """How a layer of this kind may compute when its weight has codes."""
        return self.activations.get(kind, ("static",))


class Target(Component):
    """A runtime on a device.

    The session module is one self-contained file: it imports the standard library, numpy and the runtime, nothing else,
    because the process that measures (and later another device) runs it without autocompress.
    """

    threads: int
    """Threads of one inference when latency is measured."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this runtime runs well."""

    @property
    @abstractmethod
    def session_file(self) -> Path:
        """Path of the session module, with three functions.

        `load(path, threads, optimize, **options)` returns a function from input arrays to output arrays;
        `integer_nodes(path, inputs, **options)` the names of the nodes that the optimized graph computes in integers;
        `version()` the runtime's name and version.
        """

    def options(self) -> dict[str, object]:
        """Options passed to the session module, JSON values only."""
        return {}

    @property
    def run_file(self) -> Path:
        """Path of the script that is delivered beside `model.onnx` as `run.py`; by default one for ONNX Runtime.

        It needs the runtime and numpy only, reads inputs from .npy files and writes each output to one.
        """
        return Path(__file__).with_name("run_model.py")

    def transport(self) -> Transport:
        """The way to the machine that the runtime runs on; by default it is this one."""
        return LocalTransport()


@dataclass(frozen=True)
class Components:
    """The configured instances that one run may use, by name."""

    quantizers: Mapping[str, Quantizer]
    pruners: Mapping[str, Pruner]
    observer: Observer
    metric: Metric
    target: Target
    sampler: Sampler
    recoveries: Sequence[Recovery] = field(default_factory=tuple)
    searched_observers: Mapping[str, Observer] = field(default_factory=dict)
    """Those that the search may choose for a tensor instead of the configured `observer`."""

    @property
    def observers(self) -> Mapping[str, Observer]:
        """All that may give a tensor's range, the configured one first."""
        return {self.observer.name: self.observer, **self.searched_observers}

    @property
    def slow_recoveries(self) -> Sequence[Recovery]:
        """Those that have something to do for finalists."""
        return [recovery for recovery in self.recoveries if type(recovery).recover is not Recovery.recover]

    trackers: Sequence[Tracker] = field(default_factory=tuple)
