"""How the layers of a transformer compute: `python -m benchmarks.methods_minilm`.

The embedding is stored in INT8 but where a row says otherwise; rows differ in the linear layers and the attention's products.
Cosines to the FP32 vectors are over the report sentences, and over text of another kind: this repository's own pages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from autocompress_plugins.cosine import Cosine
from autocompress_plugins.minilm.package import tokenize

from autocompress.policy import Activation, LayerPolicy, Policy, Precision
from benchmarks.workbench import Workbench, publish, workbench

ROOT = Path(__file__).parents[1]
BLOCK = 32
STORED = LayerPolicy("int8", 8, activation="float")


def policy(
    bench: Workbench,
    linear: LayerPolicy,
    *,
    last: LayerPolicy | None = None,
    embedding: LayerPolicy = STORED,
    products: Precision = "float",
) -> Policy:
    """Linear layers alike, but for those at the end of each block when `last` is given."""
    layers = {name: linear for name, layer in bench.graph.layers.items() if layer.kind == "linear"}
    layers |= {name: last for name in layers if last is not None and name.endswith(".down")}
    layers |= {name: embedding for name, layer in bench.graph.layers.items() if layer.kind == "embedding"}
    return Policy(layers, ops={op.name: products for op in bench.graph.ops if op.op_type == "MatMul"})


def recipes(bench: Workbench) -> Mapping[str, Policy]:
    """What is compared."""

    def linear(activation: Activation, quantizer: str = "int8", bits: int = 8) -> LayerPolicy:
        return LayerPolicy(quantizer, bits, activation=activation)

    static, dynamic, small = linear("static"), linear("dynamic"), LayerPolicy("gptq", 4, activation="float")
    return {
        "INT8 static": policy(bench, static),
        "INT8 static, products too": policy(bench, static, products="integer"),
        "INT8 dynamic": policy(bench, dynamic),
        "INT8 dynamic, products too": policy(bench, dynamic, products="dynamic"),
        "INT8 dynamic, last of each block stored": policy(bench, dynamic, last=STORED),
        "INT8 stored": policy(bench, STORED),
        "INT4 stored, INT8 computed dynamically (gptq)": policy(bench, linear("dynamic", "gptq", 4)),
        "INT4 stored (gptq)": policy(bench, small),
        f"INT4 stored in blocks of {BLOCK} (int4)": policy(bench, linear("float", "int4", 4)),
        "INT8 dynamic, embedding INT4": policy(bench, dynamic, embedding=LayerPolicy("int4", 4, activation="float")),
    }


def other_text(bench: Workbench) -> Path:
    """Token ids of sentences from the README, the pages and the licence, as an array file."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md"))]
    text = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in pages)
    found = [part for part in re.split(r"(?<=[.!?])\s+", text) if 30 < len(part) < 250]
    np.save(bench.folder / "other.npy", tokenize(found, bench.task.example_input.shape[1]))
    return bench.folder / "other.npy"


def row(bench: Workbench, name: str, decided: Policy, other: Path) -> dict[str, Any]:
    """Figures of one file."""
    path = bench.build(decided, bench.compress(decided), "minilm").artifact.path
    figures = bench.figures(path, timed=True)
    count = len(np.load(other))
    outputs, reference = (bench.device.outputs(file, other, 0, count, 1) for file in (path, bench.graph.path))
    return {
        "recipe": name,
        "cosine": figures["accuracy"],
        "cosine_other_text": float(Cosine().statistics(outputs, reference).mean()),
        "size_bytes": figures["size_bytes"],
        "times_smaller": 1 / figures["size_ratio"],
        "latency_ms": figures["latency_ms"],
        "times_faster": 1 / figures["latency_ratio"],
    }


def main() -> None:
    """All recipes."""
    found: list[dict[str, Any]] = []
    with workbench("+experiment=minilm", "quantizer=[int8,int4,gptq]", f"quantizer.int4.group_size={BLOCK}") as bench:
        other = other_text(bench)
        for name, decided in recipes(bench).items():
            found.append(row(bench, name, decided, other))
            sys.stdout.write(f"{json.dumps(found[-1])}\n")
            sys.stdout.flush()
    publish("methods_minilm", found)


if __name__ == "__main__":
    main()
