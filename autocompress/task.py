"""What the user brings: a trained model, data for three purposes, and a metric."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.data_set import DataSet
from autocompress.errors import DataError
from autocompress.network.attention import write_out_attention
from autocompress.network.parameters import check_parameters

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Examples:
    """Examples held in memory. Any prefix is a fair sample when the source shuffled them (files on disk are sorted by class).

    Attributes:
        inputs: float32, or int64 (token ids), shape (N, ...), the model's only input.
        targets: shape (N, ...), as the metric expects them.
    """

    inputs: NDArray[Any]
    targets: NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches(64))

    @property
    def digest(self) -> str:
        """Short hash of the values."""
        hasher = hashlib.sha256(np.ascontiguousarray(self.inputs).data)
        hasher.update(np.ascontiguousarray(self.targets).data)
        return hasher.hexdigest()[:16]

    @property
    def facts(self) -> DataSet:
        """What tells it from another set."""
        return DataSet(self.digest, len(self), self.inputs.shape[1:], str(self.inputs.dtype))

    def batches(self, size: int) -> Iterable[Batch]:
        """The examples in order, as torch tensors, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(self.inputs[start : start + size]), torch.from_numpy(self.targets[start : start + size])

    @classmethod
    def collect(cls, name: str, batches: Iterable[Batch]) -> Examples:
        """Read all batches of (inputs, targets).

        Raises:
            DataError: there is no example, a batch is not such a pair, or the batches differ in shape.
        """
        pairs = [_arrays(name, index, batch) for index, batch in enumerate(batches)]
        if not sum(len(inputs) for inputs, _ in pairs):
            raise DataError(f"task.{name}: no examples; expected an iterable of (inputs, targets) batches")
        first = pairs[0][0].shape[1:]
        for index, (inputs, _) in enumerate(pairs):
            if inputs.shape[1:] != first:
                raise DataError(f"task.{name}: batch {index} has inputs of shape {inputs.shape[1:]}, batch 0 of {first}")
        return cls(np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs]))


def input_type(values: NDArray[Any]) -> type[np.int64] | type[np.float32]:
    """What a model takes: integers of 32 or 64 bits are numbers of table rows, all else (pixels in 8 bits too) is float32."""
    return np.int64 if values.dtype.kind in "iu" and values.dtype.itemsize >= 4 else np.float32


def _examples(name: str, source: Examples | Iterable[Batch], example: Tensor) -> Examples:
    examples = source if isinstance(source, Examples) and len(source) else Examples.collect(name, source)
    examples = replace(examples, inputs=examples.inputs.astype(input_type(example.numpy()), copy=False))
    given, expected = examples.inputs.shape[1:], tuple(example.shape[1:])
    if given != expected:
        raise DataError(f"task.{name}: inputs have shape {given}; the example input has {expected}, both without the batch")
    for part, values in (("inputs", examples.inputs), ("targets", examples.targets)):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise DataError(f"task.{name}: {part} contain NaN or infinity; expected finite numbers")
    return examples


def _numbers(owner: str, values: object) -> NDArray[Any]:
    """As an array; numpy has no bfloat16."""
    try:
        tensor = torch.as_tensor(values).detach().cpu()
        array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{owner}: {type(values).__name__} is no tensor of numbers: {reason}") from error
    if np.iscomplexobj(array):
        raise DataError(f"{owner}: complex numbers; expected real ones")
    return array


def _arrays(name: str, index: int, batch: Batch) -> tuple[NDArray[Any], NDArray[np.generic]]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(f"task.{name}: batch {index} is {type(batch).__name__}; expected a pair (inputs, targets)")
    inputs, targets = (_numbers(f"task.{name}: batch {index}", part) for part in batch)
    if not inputs.ndim or not targets.ndim:
        raise DataError(
            f"task.{name}: batch {index} has no batch axis; if this is one example of a data set, wrap it in a DataLoader"
        )
    if len(inputs) != len(targets):
        raise DataError(f"task.{name}: batch {index} has {len(inputs)} inputs and {len(targets)} targets")
    return inputs, targets


@dataclass
class Task:
    """A compression job in the user's own terms.

    Args:
        model: trained module with one float32 or int64 tensor in and one tensor out; put into eval mode.
        example_input: one input batch, shape (N, ...); latency is measured on its first example. Where it holds integers of 32
            or 64 bits, the inputs of all sets become int64, else float32.
        calibration: batches of (inputs, targets) that ranges, statistics and gradients are computed on.
        search: batches that the search may see.
        report: batches for the final figures, disjoint from `search`.
        metric: registered name of the metric.
        train: optional batches for fine-tuning.
        teacher: optional module that fine-tuning learns from, of the same inputs and outputs; the model itself by default.
        loss: (outputs, targets) to a scalar tensor, for gradients; cross-entropy by default.
        name: names the study's folder and experiment.

    Raises:
        DataError: a set is empty, is not finite, has another shape than the example, or search and report share examples.
        ModelError: the model is no module, or its parameters are not finite float32 values that fit into a file.
    """

    model: nn.Module
    example_input: Tensor
    calibration: Iterable[Batch] | Examples
    search: Iterable[Batch] | Examples
    report: Iterable[Batch] | Examples
    metric: str = "accuracy"
    train: Iterable[Batch] | Examples | None = None
    teacher: nn.Module | None = None
    loss: Loss = nn.functional.cross_entropy
    name: str = "model"
    sets: dict[str, Examples] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.model = write_out_attention(check_parameters(self.model).eval().cpu())
        example = _numbers("task.example_input", self.example_input)
        if not example.ndim or not len(example):
            raise DataError(f"task.example_input: shape {example.shape}; expected one input batch, shape (N, ...)")
        self.example_input = torch.from_numpy(example.astype(input_type(example), copy=False))
        sources = {"calibration": self.calibration, "search": self.search, "report": self.report}
        self.sets = {name: _examples(name, source, self.example_input) for name, source in sources.items()}
        self._refuse_overlap()

    def training(self) -> Examples | None:
        """The training examples, read when they are first asked for; None: there are none."""
        if self.train is not None and not isinstance(self.train, Examples):
            self.train = _examples("train", self.train, self.example_input)
        return self.train

    def _refuse_overlap(self) -> None:
        """A few equal images occur in public test sets; more than one in a hundred is a mistake in the split."""
        shared = _example_hashes(self.sets["search"]) & _example_hashes(self.sets["report"])
        if 100 * len(shared) > len(self.sets["search"]):
            raise DataError(f"task: {len(shared)} examples are in both search and report; expected disjoint sets")

    def digest(self) -> str:
        """Short hash of the data and the metric, part of a study's identity."""
        parts = [self.metric, *(f"{name}:{examples.digest}" for name, examples in sorted(self.sets.items()))]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _example_hashes(examples: Examples) -> set[bytes]:
    return {hashlib.sha256(np.ascontiguousarray(example).data).digest() for example in examples.inputs}


def check_labels(task: Task, outputs: int) -> None:
    """Refuse integer targets that a classifier with `outputs` classes cannot give.

    Raises:
        DataError: a label lies outside 0 .. outputs - 1.
    """
    for name, examples in task.sets.items():
        if examples.targets.ndim == 1 and np.issubdtype(examples.targets.dtype, np.integer):
            _check_range(name, examples.targets, outputs)


def _check_range(name: str, targets: Sequence[int] | NDArray[np.generic], outputs: int) -> None:
    labels = np.asarray(targets)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs:
        raise DataError(f"task.{name}: labels run from {low} to {high}; the model has {outputs} classes (0 to {outputs - 1})")
