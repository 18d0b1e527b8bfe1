"""Classifiers with random weights, made as fast as they get: `python -m benchmarks.zoo [NETS...] --trials 25 --target NAME`.

Each layer in INT8 or float, objective latency without an accuracy floor, one thread, batch 1. Beside it in the same run and
runtime the files of ONNX Runtime's own `quantize_static` (QDQ, per channel) and of NNCF's `quantize`, made with the same
calibration data, timed in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from autocompress import SearchResult, Target, Task, search
from autocompress.config import compose_settings
from autocompress.measuring.device import TimingSettings, open_device
from autocompress.network.exporting import export
from autocompress.network.placement import place
from autocompress.registry import load_registry
from benchmarks.other_tools import made_by_others, that_run
from benchmarks.workbench import publish

NETS = (
    "resnet18",
    "vit_b_16",
    "convnext_tiny",
    "mobilenet_v2",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "mobilenet_v3_small",
)
PIXELS, PART = 224, 8
BIAS_SPREAD = 0.1
DEFAULT_TARGET = "onnxruntime"
TIMING = TimingSettings(seconds=20.0, precision=0.002)
SETTINGS = ("quantizer=[int8]", "pruner=[]", "tracking=[]")
COLUMNS = ("net", "target", "ratio", "quantize_static", "nncf", "seconds", "float_layers", "integer_ops", "float_ops")


def random_net(name: str, images: Tensor) -> nn.Module:
    """A net whose batch norms know the images, so that its activations have ordinary ranges."""
    torch.manual_seed(0)
    net: nn.Module = models.get_model(name, weights=None)
    with torch.no_grad():
        _draw_biases(net)
        net.train()
        for _ in range(3):
            net(images)
    return net.eval()


def _draw_biases(net: nn.Module) -> None:
    """Trained layers have biases. Untrained ones are zero, and a runtime drops those for whoever does not correct them."""
    generator = torch.Generator().manual_seed(2)
    for layer in net.modules():
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter) and not bias.any():
            bias.normal_(0, BIAS_SPREAD, generator=generator)


def random_task(name: str) -> Task:
    """Noise in place of images, in three sets."""
    images = torch.randn(3 * PART, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(PART)
    parts = {
        part: [(batch, labels)] for part, batch in zip(("calibration", "search", "report"), images.split(PART), strict=True)
    }
    return Task(random_net(name, images[:PART]), images[:1], **parts, metric="cosine", name=name)


def row_of(name: str, trials: int, target: Target, folder: Path) -> dict[str, Any]:
    """One search, which goes on where an earlier one in the folder stopped, and the delivered file beside the other tools'."""
    task, start = random_task(name), time.monotonic()
    overrides = [*SETTINGS, f"target={target.name}"]
    result = search(task, objective="latency", trials=trials, output_dir=folder, overrides=overrides)
    seconds = time.monotonic() - start
    reference = folder / "fp32.onnx"
    others = made_by_others(reference, folder, task.sets["calibration"].inputs)
    ratios = timed(task, target, reference, result.best.artifact.path, others)
    decided = summary(task, target, result)
    return {"net": name, "target": target.name, **ratios, "seconds": round(seconds), **decided, "status": result.status}


def timed(task: Task, target: Target, reference: Path, found: Path, others: Mapping[str, Path]) -> dict[str, float]:
    """Median ratio to FP32, all files that run in the same interleaved rounds."""
    inputs = reference.with_name("example.npy")
    np.save(inputs, task.example_input[:1].numpy())
    with open_device(target, 1) as device:
        files = {"ratio": found, **that_run(device, others, inputs)}
        latencies = device.latencies(reference, list(files.values()), inputs, TIMING)
    return {what: latency.ratio for what, latency in zip(files, latencies, strict=True)}


def summary(task: Task, target: Target, result: SearchResult) -> dict[str, Any]:
    """What the policy decided, and how the operators between layers compute."""
    with tempfile.TemporaryDirectory() as folder:
        graph = export(task.model, task.example_input, Path(folder) / "fp32.onnx")
    integer = place(graph, result.policy, target.capabilities()).integer
    return {
        "float_layers": len(graph.layers) - len(result.policy.layers),
        "integer_ops": sum(op.name in integer for op in graph.ops),
        "float_ops": sum(op.name not in integer for op in graph.ops),
        "float_layer_names": [name for name in graph.layers if name not in result.policy.layers],
        "decided_ops": dict(Counter(result.policy.ops.values())),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The columns that fit on a line."""
    cells = [
        COLUMNS,
        *(
            [f"{row[name]:.3f}" if isinstance(row.get(name), float) else str(row.get(name, "-")) for name in COLUMNS]
            for row in rows
        ),
    ]
    return "\n".join("  ".join(str(cell).rjust(18) for cell in line) for line in cells)


def main() -> None:
    """A row and a file of results for each net; the table grows as they finish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=NETS)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--work", type=Path, help="keep the searches here; the same command goes on where it was stopped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    target = compose_settings([f"target={arguments.target}"], load_registry()).components.target
    suffix = "" if target.name == DEFAULT_TARGET else f"_{target.name}"
    rows: list[dict[str, Any]] = []
    for name in arguments.nets:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                row_of(name, arguments.trials, target, arguments.work / f"{name}{suffix}" if arguments.work else Path(folder))
            )
        sys.stdout.write(f"{table(rows)}\n")
        publish(f"zoo_{name}{suffix}", rows[-1])


if __name__ == "__main__":
    main()
