"""End results beside other tools and uniform policies: `python -m benchmarks.end_results resnet20_small`.

One search as on the command line; then, on the same data and timed in the same interleaved rounds, its file, those of
`quantize_static` and NNCF, uniform INT8, and every uniform policy of the search's own options: each way of quantizing with
each way of pruning, the same for all layers. Accuracy is that of the report set. The answers that the uniform policies give
are two: the most accurate one that is not larger than the searched file, and the smallest that loses no more than allowed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from autocompress.choices.options import build_space
from autocompress.choices.space import SearchSpace
from autocompress.policy import LayerPolicy, Policy
from benchmarks.acceptance import CASES, run_case
from benchmarks.other_tools import made_by_others, that_run
from benchmarks.workbench import TIMING, Workbench, publish, workbench

ALLOWED_DROP_POINTS = 1.0
EQUAL_SIZE = 1.02
"""A uniform policy's file may be so much larger and still counts as of equal size."""


@dataclass(frozen=True)
class Uniform:
    """One way for all layers; a layer that does not offer it takes the one with the same codes and less pruning."""

    quantizer: str | None
    bits: int
    pruner: str | None
    sparsity: float

    @property
    def name(self) -> str:
        """For the table."""
        pruned = f" {self.pruner} {self.sparsity:.0%}" if self.pruner else ""
        return f"uniform {self.quantizer} {self.bits}{pruned}"

    def option(self, options: Sequence[LayerPolicy]) -> LayerPolicy:
        """What a layer gets."""
        fitting = [o for o in options if o.quantizer == self.quantizer and o.bits >= self.bits and o.activation == "static"]
        fewest = min((o.bits for o in fitting), default=0)
        alike = [o for o in fitting if o.bits == fewest and o.pruner in (None, self.pruner) and o.sparsity <= self.sparsity]
        return max(alike, key=lambda option: option.sparsity, default=LayerPolicy())

    def policy(self, space: SearchSpace) -> Policy:
        """As a policy of the search space."""
        chosen = {name: self.option(options) for name, options in space.layers.items()}
        return Policy({name: option for name, option in chosen.items() if option != LayerPolicy()})


def uniform_ways(space: SearchSpace) -> list[Uniform]:
    """Every combination that some layer offers."""
    options = [option for options in space.layers.values() for option in options if option.quantizer is not None]
    codes = sorted({(str(option.quantizer), option.bits) for option in options})
    pruned = sorted(
        {(option.pruner, option.sparsity) for option in options if option.pruner and option.structure == "unstructured"}
    )
    return [Uniform(*code, *way) for code, way in product(codes, [(None, 0.0), *pruned])]


def compared(bench: Workbench, searched: Path) -> list[dict[str, Any]]:
    """A row for each file."""
    others = made_by_others(bench.graph.path, bench.folder, bench.task.sets["calibration"].inputs)
    files = {"searched": searched, **that_run(bench.device, others, bench.evaluator.inputs("example"))}
    space = build_space(bench.graph, bench.components, bench.groups, bench.space, bench.database)
    for way in uniform_ways(space):
        policy = way.policy(space)
        files[way.name] = bench.build(policy, bench.compress(policy), way.name.replace(" ", "_").replace("%", "")).artifact.path
    rows = [{"file": name, **bench.figures(path)} for name, path in files.items()]
    found = bench.device.latencies(bench.graph.path, list(files.values()), bench.evaluator.inputs("example"), TIMING)
    return [{**row, "latency_ratio": latency.ratio} for row, latency in zip(rows, found, strict=True)]


def answers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The searched file beside the two best uniform ones; null where none fits."""
    searched, uniform = rows[0], [row for row in rows if row["file"].startswith("uniform")]
    small = [row for row in uniform if row["size_bytes"] <= EQUAL_SIZE * searched["size_bytes"]]
    good = [row for row in uniform if row["drop_points"] <= ALLOWED_DROP_POINTS]
    return {
        "searched": searched,
        "most accurate uniform of equal size": max(small, key=lambda row: float(row["accuracy"]), default=None),
        "smallest uniform within the drop": min(good, key=lambda row: int(row["size_bytes"]), default=None),
    }


def line(name: str, row: dict[str, Any] | None) -> str:
    """For the terminal."""
    if row is None:
        return f"{name}: none\n"
    low, high = row["drop_ci_points"]
    drop = f"{row['drop_points']:.2f} points lost ({low:.2f} to {high:.2f})"
    return f"{name}: {row['file']}: {1 / row['size_ratio']:.2f}x smaller, {1 / row['latency_ratio']:.2f}x faster, {drop}\n"


def main() -> None:
    """One case of `benchmarks.acceptance`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[name for name in CASES if name.endswith("_small")])
    parser.add_argument("--work", type=Path, default=Path("outputs/end_results"))
    parser.add_argument("--found", action="store_true", help="compare what an earlier search has left in the folder of work")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, case = arguments.work.resolve(), arguments.case
    folder = work / f"{case}-0"
    result = json.loads((folder / "result.json").read_text()) if arguments.found else run_case(case, 0, work, False, ())
    with workbench(*CASES[case].overrides) as bench:
        shutil.copy(folder / "best/model.onnx", bench.folder / "searched.onnx")
        rows = compared(bench, bench.folder / "searched.onnx")
    found = answers(rows)
    kept = ("status", "drop", "drop_ci", "seconds", "predicted", "reasons", "versions", "device")
    search = {name: result[name] for name in kept if name in result}
    publish(f"end_results_{case}", {"asked": CASES[case].asked, "search": search, "answers": found, "files": rows})
    sys.stdout.write("".join(line(row["file"], row) for row in rows) + "\n")
    sys.stdout.write("".join(line(name, row) for name, row in found.items()) + f"{json.dumps(search)}\n")


if __name__ == "__main__":
    main()
