"""Method x bits: `python -m benchmarks.methods_bits resnet20 | efficientnet_lite0`.

Each row is a delivered file on the report set: weights at 8 bits, at 4 with the first and the last layer at 8, all at 4; every
activation at 8 bits. Seconds are what the method took for all layers, calibration statistics excluded (they are shared).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from autocompress_plugins.adaround import AdaRound
from autocompress_plugins.affine import Int4, Int8
from autocompress_plugins.bias_correction import BiasCorrection
from autocompress_plugins.estimated import Estimated
from autocompress_plugins.gptq import Gptq
from autocompress_plugins.mean_rounding import MeanRounding

from autocompress.components import Quantizer, Recovery
from autocompress.policy import LayerPolicy, Policy
from autocompress.tensors.compress import LayerDatabase
from benchmarks.workbench import Workbench, publish, workbench

MODELS = {
    "resnet20": ("+experiment=cifar10_resnet20", "data.report_size=8000"),
    "efficientnet_lite0": ("+experiment=imagenet_efficientnet_lite0", "data.report_size=600"),
}

QUANTIZERS: Mapping[str, Quantizer] = {
    "int8": Int8(),
    "int4": Int4(),
    "estimated mse": Estimated(method="mse"),
    "estimated percentile": Estimated(method="percentile"),
    "estimated entropy": Estimated(method="entropy"),
    "mean_rounding uniform": MeanRounding(cells="uniform"),
    "mean_rounding kmeans": MeanRounding(cells="kmeans"),
    "gptq uniform": Gptq(cells="uniform"),
    "gptq kmeans": Gptq(cells="kmeans"),
}

RECOVERIES: Mapping[str, Sequence[Recovery]] = {"bias_correction": [BiasCorrection()], "adaround": [AdaRound()]}


@dataclass(frozen=True)
class Row:
    """A quantizer at 4 bits or 8, and where.

    Attributes:
        bits: weight bits; `edges`: of the first and the last layer.
    """

    quantizer: str
    bits: int
    edges: int
    recovery: str = ""

    def policy(self, layers: Sequence[str]) -> Policy:
        """Every layer quantized; the edges by plain INT8 where they have 8 bits and the others 4."""
        inner = LayerPolicy(self.quantizer, self.bits)
        edge = inner if self.edges == self.bits else LayerPolicy("int8", 8)
        return Policy({name: edge if name in (layers[0], layers[-1]) else inner for name in layers})


def rows() -> Iterator[Row]:
    """W8A8, then W4A8 with INT8 edges, then all at 4 bits; what finalists get in addition, where the edges are INT8."""
    yield from (Row(name, 8, 8) for name in QUANTIZERS if name not in ("int4", "mean_rounding kmeans", "gptq kmeans"))
    yield from (Row(name, 4, 8) for name in QUANTIZERS if name != "int8")
    yield from (Row(name, 4, 4) for name in QUANTIZERS if name != "int8")
    yield Row("int4", 4, 8, "adaround")
    yield from (Row(name, 4, 8, "bias_correction") for name in ("int4", "gptq kmeans"))


def with_methods(bench: Workbench) -> Workbench:
    """The workbench with every configuration of every method under a name of its own, and an empty layer database."""
    components = replace(bench.components, quantizers=QUANTIZERS)
    database = LayerDatabase(bench.graph, bench.calibration, components, bench.groups)
    return replace(bench, components=components, database=database)


def measured(bench: Workbench, row: Row) -> dict[str, Any]:
    """Compress, build, evaluate."""
    fresh, policy = with_methods(bench), row.policy(list(bench.graph.layers))
    start = time.monotonic()
    compressed = fresh.recover(policy, RECOVERIES[row.recovery]) if row.recovery else fresh.compress(policy)
    seconds = time.monotonic() - start
    figures = bench.figures(fresh.build(policy, compressed).artifact.path)
    line = {**row.__dict__, "seconds": seconds, **figures}
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()
    return line


def database_seconds(bench: Workbench) -> dict[str, Any]:
    """Eight options for every layer, compressed and repaired once: what a search pays before its trials only stitch."""
    fresh = with_methods(bench)
    options = [("int8", 8), ("gptq uniform", 8), ("int4", 4), ("gptq kmeans", 4), ("estimated mse", 4), ("estimated mse", 8)]
    options += [("mean_rounding uniform", 4), ("mean_rounding kmeans", 4)]
    start = time.monotonic()
    for quantizer, bits in options:
        fresh.compress(Row(quantizer, bits, bits).policy(list(bench.graph.layers)))
    return {"database_options": [f"{name} {bits}" for name, bits in options], "database_seconds": time.monotonic() - start}


def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="rows whose recovery or quantizer contains this word")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.monotonic()
    with workbench(*MODELS[arguments.model]) as bench:
        setup = time.monotonic() - start
        found = [measured(bench, row) for row in rows() if arguments.only in f"{row.quantizer} {row.recovery}"]
        if not arguments.only:
            found.append({**database_seconds(bench), "calibration_and_setup_seconds": setup})
    suffix = f"_{arguments.only.replace(' ', '_')}" if arguments.only else ""
    publish(f"methods_bits_{arguments.model}{suffix}", found)


if __name__ == "__main__":
    main()
