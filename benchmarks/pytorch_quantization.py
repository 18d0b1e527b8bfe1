"""PyTorch's own INT8 beside ours: `python -m benchmarks.pytorch_quantization [OVERRIDES]`.

ResNet-20 on CIFAR-10, one thread, batch 1. PyTorch's two ways of post-training quantization, with their defaults and the
calibration examples of our search: `torch.ao.quantization` by FX graph (deprecated, run in eager PyTorch), and PT2E of torchao
with the quantizer for x86 CPUs, compiled by Inductor with frozen weights, as its documentation says. Beside them FP32 in eager
PyTorch, compiled, and in ONNX Runtime, and our file with INT8 in every layer. All are timed in the same rounds of random order;
accuracy is that of the very callables that are timed.

Needs `pip install autocompress[compare]`, a C++ compiler and the folder that AUTOCOMPRESS_DATA names. A second run finds the
compiled code in Inductor's cache.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.measuring.runner import load_session
from autocompress.measuring.timing import Effort, Run, measure
from autocompress.policy import LayerPolicy, Policy
from benchmarks.workbench import Workbench, publish, workbench

EFFORT = Effort(seconds=4.0, precision=0.005)
ENGINE = "x86"


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    Attributes:
        open: gives the callable; what is compiled is compiled once, a file is opened anew.
        size_bytes: of what one would store; `stored` says what that is.
        batch: examples of one call when the accuracy is found; what is compiled for one example takes one.
    """

    name: str
    open: Callable[[], Run]
    size_bytes: int
    stored: str
    batch: int = 100


def by_fx(model: nn.Module, calibration: Tensor) -> nn.Module:
    """`torch.ao.quantization`, graph mode, with the default settings of the x86 engine."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = ENGINE
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(ENGINE), (calibration[:1],))
    with torch.inference_mode():
        prepared(calibration)
    converted: nn.Module = convert_fx(prepared)
    return converted


def by_pt2e(model: nn.Module, calibration: Tensor) -> nn.Module:
    """PT2E of torchao with the default settings for x86 CPUs, exported for one example."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (calibration[:1],)).module(), quantizer)
    with torch.no_grad():
        for example in calibration:
            prepared(example[None])
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """By Inductor, with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(module)


def contenders(bench: Workbench) -> list[Contender]:
    """FP32 in ONNX Runtime first: the reference of all ratios."""
    model = bench.task.model
    calibration = torch.from_numpy(bench.task.sets["calibration"].inputs)
    fx, pt2e = by_fx(model, calibration), by_pt2e(model, calibration)
    file = int8_file(bench)
    weights, exported = "torch.save of the state_dict", "torch.export.save"
    sys.stdout.write("converted; compiled on first use\n")
    return [
        Contender("FP32, ONNX Runtime", session(bench, bench.graph.path), len(bench.graph.data), "ONNX file"),
        Contender("FP32, eager PyTorch", in_torch(model), state_bytes(model), weights),
        Contender("FP32, torch.compile", in_torch(compiled(model)), state_bytes(model), weights, 1),
        Contender("INT8, torch.ao FX, eager", in_torch(fx), state_bytes(fx), weights),
        Contender(
            "INT8, torchao PT2E, torch.compile", in_torch(compiled(pt2e)), exported_bytes(pt2e, calibration), exported, 1
        ),
        Contender("INT8, autocompress, ONNX Runtime", session(bench, file), file.stat().st_size, "ONNX file"),
    ]


def int8_file(bench: Workbench) -> Path:
    """Our file with INT8 in every layer, repaired as in every trial."""
    policy = Policy(dict.fromkeys(bench.graph.layers, LayerPolicy("int8", 8)))
    return bench.build(policy, bench.compress(policy)).artifact.path


def session(bench: Workbench, path: Path) -> Callable[[], Run]:
    """Opens a file as the product does."""
    return lambda: load_session(bench.components.target, path, threads=1)


def in_torch(module: Callable[[Tensor], Tensor]) -> Callable[[], Run]:
    """A module as something that maps arrays to arrays; both conversions share memory."""

    def run(inputs: Sequence[Any]) -> list[Any]:
        with torch.inference_mode():
            return [module(torch.from_numpy(inputs[0])).numpy()]

    return lambda: run


def state_bytes(module: nn.Module) -> int:
    """Of the weights alone, as PyTorch saves them."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()


def exported_bytes(module: nn.Module, calibration: Tensor) -> int:
    """Of the exported program with its weights, which is what a target would compile; its sample input is one example."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (calibration[:1].clone(),)), buffer)
    return buffer.getbuffer().nbytes


def outputs(contender: Contender, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the very callable that is timed."""
    run, batch = contender.open(), contender.batch
    return np.concatenate([run([images[start : start + batch]])[0] for start in range(0, len(images), batch)])


def compared(bench: Workbench) -> list[dict[str, Any]]:
    """A row for each contender."""
    found = contenders(bench)
    images = bench.task.sets["report"].inputs
    qualities = [bench.quality(outputs(contender, images)) for contender in found]
    example = np.ascontiguousarray(images[:1])
    timed = measure([contender.open for contender in found], [example], EFFORT)
    fp32_ms = timed[0]["reference_median_ms"]
    latencies = [{"latency_ms": fp32_ms, "latency_ratio": 1.0, "latency_ratio_ci": None}]
    latencies += [
        {"latency_ms": t["median_ms"], "latency_ratio": t["ratio"], "latency_ratio_ci": [t["ratio_low"], t["ratio_high"]]}
        for t in timed
    ]
    return [
        {"what": contender.name, **quality, "size_bytes": contender.size_bytes, "stored": contender.stored, **latency}
        for contender, quality, latency in zip(found, qualities, latencies, strict=True)
    ]


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the configuration, for example data.report_size=3000")
    overrides = parser.parse_args().overrides
    warnings.simplefilter("ignore")  # deprecations of PyTorch's own, on every call
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with workbench("+experiment=cifar10_resnet20", *overrides) as bench:
        rows = compared(bench)
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")
    publish("pytorch_quantization", {"versions": {"torchao": version("torchao")}, "files": rows})


if __name__ == "__main__":
    main()
