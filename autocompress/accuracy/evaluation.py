"""Accuracy of a file: computed by the target's runtime on the very bytes that ship."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.accuracy.distance import output_divergence
from autocompress.accuracy.guarded_metric import GuardedMetric
from autocompress.accuracy.intervals import Statistics
from autocompress.components import Metric
from autocompress.errors import CheckError, DataError, DisturbedError, RuntimeCrashError
from autocompress.measuring.device import Device
from autocompress.measuring.runner import save_array
from autocompress.network.graph import BaseGraph
from autocompress.task import Task

BATCH = 32
MINIMUM_SNR_DB = 20.0
MINIMUM_AGREEMENT = 0.95
RANGE_FINDER = b"DynamicQuantize"
"""What the names of operators begin with that find a range at run time."""


@dataclass(frozen=True)
class Evaluator:
    """Runs files on the task's sets.

    Attributes:
        folder: where the sets lie as array files, so that the runtime's process reads them without copying.
        reference: set name to the FP32 file's first output, shape (N, ...).
    """

    metric: Metric
    device: Device
    folder: Path
    batch: int
    targets: Mapping[str, NDArray[np.generic]]
    reference: dict[str, NDArray[Any]]

    @classmethod
    def prepare(cls, task: Task, metric: Metric, graph: BaseGraph, device: Device, folder: Path) -> Evaluator:
        """Write the sets to disk; the reference outputs are computed when first needed."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, examples in task.sets.items():
            save_array(folder / f"{name}.npy", examples.inputs)
        save_array(folder / "example.npy", task.example_input[:1].numpy())
        targets = {name: examples.targets for name, examples in task.sets.items()}
        return cls(GuardedMetric(metric), device, folder, graph.batch or BATCH, targets, {})

    def inputs(self, name: str) -> Path:
        """The array file of a set, or of `example`: the input that latency is measured on."""
        return self.folder / f"{name}.npy"

    def check_inputs(self) -> None:
        """Make sure that the sets lie where they were written.

        Raises:
            DisturbedError: something else removed or cut one.
        """
        for name, targets in self.targets.items():
            path = self.inputs(name)
            try:
                count = len(np.load(path, mmap_mode="r"))
            except (OSError, ValueError):
                count = 0
            if count != len(targets):
                raise DisturbedError(path)

    def keep_reference(self, graph: BaseGraph, name: str) -> None:
        """Compute the FP32 file's outputs on a set, once.

        Raises:
            DataError: the file does not run on it, or an output is not finite.
        """
        if name in self.reference:
            return
        try:
            outputs = self.outputs(graph.path, name, 0, len(self.targets[name]))
        except RuntimeCrashError as error:
            raise DataError(f"task.{name}: the FP32 model does not run on it: {error}") from error
        if not np.isfinite(outputs).all():
            raise DataError(f"task.{name}: the FP32 model gives NaN or infinity; expected finite outputs on every example")
        self.reference[name] = outputs

    def outputs(self, path: Path, name: str, start: int, stop: int, *, optimize: bool = True) -> NDArray[Any]:
        """First output of a file for examples start .. stop of a set.

        Where the file finds ranges at run time, they cover the batch; then each example runs alone, as latency is measured.
        """
        batch = 1 if RANGE_FINDER in path.read_bytes() else self.batch
        outputs = self.device.outputs(path, self.inputs(name), start, stop, batch, optimize=optimize)
        if len(outputs) != stop - start:
            raise CheckError(f"the file gives {len(outputs)} outputs for {stop - start} examples of the {name} set")
        return outputs

    def statistics(self, path: Path, name: str, start: int, stop: int) -> Statistics:
        """The metric's statistics of a file on examples start .. stop of a set: shape (stop - start, ...)."""
        outputs = self.outputs(path, name, start, stop)
        return self.score(outputs, name, start, stop)

    def reference_statistics(self, name: str) -> Statistics:
        """The metric's statistics of the FP32 file on a set."""
        return self.score(self.reference[name], name, 0, len(self.reference[name]))

    def score(self, outputs: NDArray[Any], name: str, start: int, stop: int) -> Statistics:
        """Statistics of outputs that were computed for examples start .. stop of a set.

        Raises:
            CheckError: an output is not finite, of which a metric could make anything.
        """
        if not np.isfinite(outputs).all():
            raise CheckError(f"the file gives NaN or infinity on examples of the {name} set")
        expected = self.reference[name] if self.metric.against_reference else self.targets[name]
        return self.metric.statistics(outputs, expected[start:stop])

    def divergence(self, outputs: NDArray[Any], name: str, start: int, stop: int) -> NDArray[np.float64]:
        """How far outputs for examples start .. stop of a set are from FP32's: shape (stop - start,)."""
        return output_divergence(outputs, self.reference[name][start:stop], class_scores=self.metric.class_scores)

    def check(self, path: Path, images: int) -> None:
        """Make sure that a file computes what its graph says.

        Raises:
            CheckError: an output is not finite, or the optimized run disagrees with the unoptimized run of the same file.
        """
        count = min(images, len(self.targets["calibration"]))
        fast, exact = (self.outputs(path, "calibration", 0, count, optimize=optimize) for optimize in (True, False))
        check_outputs(fast, exact, class_scores=self.metric.class_scores)


def check_outputs(
    fast: NDArray[Any],
    exact: NDArray[Any],
    what: str = "optimized and unoptimized run of the file",
    class_scores: bool = False,
) -> None:
    """Compare two computations of the same outputs, shape (N, ...).

    Args:
        class_scores: whether they are scores of classes, shape (N, classes).

    Raises:
        CheckError: not finite, signal-to-noise ratio under 20 dB, or (for class scores) the same top choice under 95 %.
    """
    if not (np.isfinite(fast).all() and np.isfinite(exact).all()):
        raise CheckError("the file gives NaN or infinity on calibration data")
    ratio = snr_db(exact, fast)
    if ratio < MINIMUM_SNR_DB:
        raise CheckError(f"{what} agree to {ratio:.1f} dB only; expected at least {MINIMUM_SNR_DB:.0f} dB")
    if class_scores and fast.ndim == 2 and fast.shape[1] > 1:
        agreement = float((fast.argmax(1) == exact.argmax(1)).mean())
        if agreement < MINIMUM_AGREEMENT:
            raise CheckError(f"{what} agree in top-1 on {agreement:.1%} only; expected at least {MINIMUM_AGREEMENT:.0%}")


def snr_db(signal: NDArray[Any], noisy: NDArray[Any]) -> float:
    """Signal-to-noise ratio in decibels: 10 log10(sum signal^2 / sum (signal - noisy)^2); infinite where both are equal."""
    power = float(np.square(signal, dtype=np.float64).sum())
    noise = float(np.square(signal.astype(np.float64) - noisy).sum())
    if noise == 0:
        return math.inf
    return 10 * float(np.log10(max(power, 1e-30) / max(noise, 1e-30)))
