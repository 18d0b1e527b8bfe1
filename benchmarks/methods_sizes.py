"""Bytes and speed of stored encodings: `python -m benchmarks.methods_sizes`.

Files of EfficientNet-Lite0 and ResNet-20 against FP32 (metadata stripped from both); what is neither code nor scale nor bias is
counted in the file itself with onnx only. Latencies are taken against the INT8 file, interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import torch

from autocompress.policy import LayerPolicy, Policy
from benchmarks.workbench import TIMING, Workbench, publish, workbench

INT8, INT4 = LayerPolicy("int8", 8), LayerPolicy("int4", 4)
SPARSE = LayerPolicy("int8", 8, "sparse", 0.7)
ROUNDS = 5


def policies(layers: list[str]) -> dict[str, Policy]:
    """The files whose bytes are compared."""
    edges = {layers[0]: INT8, layers[-1]: INT8}
    return {
        "int8": Policy(dict.fromkeys(layers, INT8)),
        "int4": Policy(dict.fromkeys(layers, INT4)),
        "int4, edges int8": Policy(dict.fromkeys(layers, INT4) | edges),
        "int8, 70 % sparse": Policy(dict.fromkeys(layers, SPARSE)),
    }


def overhead(path: Path) -> dict[str, Any]:
    """Bytes that are no tensor data: names, shapes, graph. Tensor data are the codes, masks, scales and biases."""
    model = onnx.load(path)
    data = sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in model.graph.initializer)
    size = path.stat().st_size
    return {"tensor_bytes": data, "other_bytes": size - data, "other_share": (size - data) / size}


def rows(bench: Workbench, model: str) -> list[dict[str, Any]]:
    """Every file of one model."""
    layers = list(bench.graph.layers)
    files = {name: bench.build(policy, bench.compress(policy), name).artifact.path for name, policy in policies(layers).items()}
    found = []
    for name, path in files.items():
        size = path.stat().st_size
        line = {"model": model, "file": name, "size_bytes": size, "smaller": len(bench.graph.data) / size, **overhead(path)}
        line["smaller_than_int8"] = files["int8"].stat().st_size / size
        line["latency_to_int8"] = _ratio(bench, files["int8"], path)
        sys.stdout.write(f"{json.dumps(line)}\n")
        found.append(line)
    return found


def _ratio(bench: Workbench, reference: Path, path: Path) -> float:
    """The median of several interleaved comparisons with the INT8 file."""
    inputs = bench.evaluator.inputs("example")
    ratios = sorted(bench.device.latency(reference, path, inputs, TIMING).ratio for _ in range(ROUNDS))
    return ratios[ROUNDS // 2]


def main() -> None:
    """Both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    found: list[dict[str, Any]] = []
    for model, experiment in (("efficientnet_lite0", "imagenet_efficientnet_lite0"), ("resnet20", "cifar10_resnet20")):
        with workbench(f"+experiment={experiment}", "pruner=[sparse]", "data.report_size=300") as bench:
            found += rows(bench, model)
    publish("methods_sizes", found)


if __name__ == "__main__":
    main()
