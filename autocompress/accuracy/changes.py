"""Where a file differs from FP32: which examples, which classes. Written beside the result."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from autocompress.accuracy.class_drops import ClassDrop, class_drops
from autocompress.accuracy.flips import Flip, find_flips, top_choices
from autocompress.accuracy.worst_examples import WorstExample, worst_examples
from autocompress.guarding.whole_file import write_whole

if TYPE_CHECKING:
    from autocompress.accuracy.evaluation import Evaluator


@dataclass(frozen=True)
class Changes:
    """Where a file differs from FP32 on one set.

    Attributes:
        flips: examples with another top choice, where outputs are scores of classes.
        classes: what each class lost of its top-1 accuracy, where outputs are scores of classes.
        worst: the examples furthest from FP32, where outputs are anything else.
    """

    flips: Sequence[Flip] = ()
    classes: Sequence[ClassDrop] = ()
    worst: Sequence[WorstExample] = ()


def find_changes(evaluator: Evaluator, outputs: NDArray[Any], name: str) -> Changes:
    """Compare a file's outputs on a whole set with FP32's, which the evaluator keeps.

    Where the metric compares with FP32, or targets are no labels, FP32's choice counts as right.
    """
    if not evaluator.metric.class_scores:
        return Changes(worst=worst_examples(evaluator.divergence(outputs, name, 0, len(outputs))))
    fp32, file = top_choices(evaluator.reference[name]), top_choices(outputs)
    targets = evaluator.targets[name]
    has_labels = not evaluator.metric.against_reference and targets.size == len(targets)
    labels = targets.reshape(len(targets)) if has_labels else fp32
    return Changes(find_flips(labels, fp32, file), class_drops(labels, fp32, file))


def write_changes(changes: Changes, folder: Path) -> None:
    """Write `flips.csv`, `classes.csv` and `worst.csv`; a table without rows is not written, and an earlier one is removed."""
    tables: dict[str, Sequence[Flip | ClassDrop | WorstExample]] = vars(changes)
    for name, rows in tables.items():
        path = folder / f"{name}.csv"
        if rows:
            _write(path, [asdict(row) for row in rows])
        else:
            path.unlink(missing_ok=True)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
