"""Whether a pruner would remove the same weights again: its masks from one half of the calibration data against the other's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from autocompress.policy import Policy
from autocompress.record import MaskOverlap
from autocompress.task import Examples, Task
from autocompress.tensors.calibration import Calibration
from autocompress.tensors.compress import LayerDatabase
from autocompress.trials.trial import Bench


def mask_overlap(bench: Bench, policy: Policy, folder: Path, seed: int) -> Mapping[str, MaskOverlap]:
    """Overlap of the masks of two independent runs, for each layer that loses weights or channels.

    The runs see disjoint halves of the calibration data. What a pruner does not ask for is not computed: masks by magnitude
    cost nothing and agree entirely.

    Args:
        folder: for temporary files.
    """
    examples = bench.task.sets["calibration"]
    if len(examples) < 2:
        return {}
    first, second = (_remaining(bench, _with_calibration(bench.task, examples, part), policy, folder, seed) for part in (0, 1))
    return {name: jaccard(mask, second[name]) for name, mask in first.items()}


def _remaining(bench: Bench, task: Task, policy: Policy, folder: Path, seed: int) -> Mapping[str, Tensor]:
    calibration = Calibration(task, bench.graph, bench.components, folder, seed)
    return LayerDatabase(bench.graph, calibration, bench.components, bench.groups).remaining(policy)


def _with_calibration(task: Task, examples: Examples, part: int) -> Task:
    """The task with every second calibration example: the set is in random order, so both halves are fair samples of it."""
    half = copy.copy(task)
    half.sets = {**task.sets, "calibration": Examples(examples.inputs[part::2].copy(), examples.targets[part::2].copy())}
    return half


def jaccard(first: Tensor, second: Tensor) -> MaskOverlap:
    """Weights that stay in both of two masks, bool and of one shape, as a share of those that stay in either (Jaccard 1901).

    Independent masks that keep shares p and q have p q / (p + q - p q) in common by chance.
    """
    either = int((first | second).sum())
    p, q = (float(mask.double().mean()) for mask in (first, second))
    union = p + q - p * q
    return MaskOverlap(int((first & second).sum()) / either if either else 1.0, p * q / union if union else 1.0)
