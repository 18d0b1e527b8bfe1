"""Criterion x structure x sparsity on ResNet-20, before and after recovery: `python -m benchmarks.methods_pruning`.

Every row is a delivered INT8 file on the report set. Recovery is fine-tuning, taught by the FP32 model or by the labels alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from autocompress_plugins.finetune import FineTune

from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.tensors.compress import CompressedModel
from benchmarks.workbench import Workbench, publish, workbench

CRITERIA = ("sparse", "importance", "stability")
SHARES = (0.4, 0.6, 0.8)
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
RECIPE = {"learning_rate": 2e-3, "batch_size": 128, "flip": True, "shift": 2, "epochs": 100, "patience": 100}


@dataclass(frozen=True)
class Cell:
    """One row of the table before recovery."""

    criterion: str
    structure: str
    share: float

    def policy(self, layers: list[str]) -> Policy:
        """INT8 everywhere, and the cut."""
        if self.structure == "channel":
            cuts = dict.fromkeys(INNER, ChannelPolicy(self.criterion, self.share))
            return Policy(dict.fromkeys(layers, LayerPolicy("int8", 8)), cuts)
        return Policy(dict.fromkeys(layers, LayerPolicy("int8", 8, self.criterion, self.share, self.structure)))


ASKED = {"2_of_4": Cell("importance", "2:4", 0.5), "unstructured": Cell("sparse", "unstructured", 0.6)}


def cells() -> Iterator[Cell]:
    """All criteria, structures and shares; 2:4 has one share."""
    for criterion in CRITERIA:
        yield from (Cell(criterion, "unstructured", share) for share in SHARES)
        yield Cell(criterion, "2:4", 0.5)
        yield from (Cell(criterion, "channel", share) for share in (0.25, 0.5))


def is_recovered(cell: Cell) -> bool:
    """One share of each structure is fine-tuned."""
    return (cell.structure, cell.share) in {("unstructured", 0.6), ("2:4", 0.5), ("channel", 0.5)}


def row(bench: Workbench, cell: Cell, compressed: CompressedModel, **more: Any) -> dict[str, Any]:
    """The delivered file of a cell."""
    file = bench.build(cell.policy(list(bench.graph.layers)), compressed)
    figures = bench.figures(file.artifact.path)
    line = {**cell.__dict__, **more, **figures}
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()
    return line


def tuned(bench: Workbench, cell: Cell, distill: float, seconds: float) -> dict[str, Any]:
    """A cell after fine-tuning."""
    start = time.monotonic()
    recipe = FineTune(seconds=seconds, distill=distill, **RECIPE)  # type: ignore[arg-type]
    compressed = bench.recover(cell.policy(list(bench.graph.layers)), [recipe])
    return row(bench, cell, compressed, recovery="finetune", distill=distill, seconds=time.monotonic() - start)


def table(bench: Workbench, seconds: float) -> Iterator[dict[str, Any]]:
    """Every cell, and some of them after a short fine-tuning."""
    for cell in cells():
        yield row(bench, cell, bench.compress(cell.policy(list(bench.graph.layers))), recovery="moments")
        if is_recovered(cell):
            yield tuned(bench, cell, 0.9, seconds)
            yield tuned(bench, cell, 0.0, seconds)


def main() -> None:
    """The table, then the two cells that are asked for after ten minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="fine-tuning of each cell of the table")
    parser.add_argument("--long", type=float, default=540.0, help="fine-tuning of a cell that is asked for")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--part", choices=("table", *ASKED), default="table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with workbench("+experiment=cifar10_resnet20", f"pruner=[{','.join(CRITERIA)}]", "data.train_size=-1") as bench:
        if arguments.part == "table":
            publish("methods_pruning", list(table(bench, arguments.seconds)))
        else:
            publish(f"methods_pruning_{arguments.part}", [tuned(bench, ASKED[arguments.part], 0.9, arguments.long)])


if __name__ == "__main__":
    main()
