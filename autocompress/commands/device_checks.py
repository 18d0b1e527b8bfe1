"""What `autocompress doctor` tries on the target: a tiny file is loaded, run and timed against itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.commands.check import Check, guarded
from autocompress.components import Target
from autocompress.measuring.device import Device, TimingSettings, open_device
from autocompress.reporting.report import resolution_note

DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""Instructions that multiply 8-bit integers and add them up at once."""

WIDTH, DEPTH = 256, 6
"""Of the tiny net: large enough that calls are not all of its time."""

TOLERANCE = 1e-3
SECONDS = 1.5
NOISY = 0.05
"""Differences of latency that a machine should tell apart: many candidates differ by less than this."""

PATIENCE_SECONDS = 0.0


def device_checks(target: Target) -> Iterator[Check]:
    """Of the processor, the runtime and the clock of the machine that the target runs on."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="autocompress-")))
        device = stack.enter_context(open_device(target, 1, patience=PATIENCE_SECONDS))
        model, inputs, expected = tiny_net(scratch)
        first = guarded("runtime", lambda: _runtime(device, target, model, inputs, expected))
        yield first
        if first.usable:  # else the others only say the same again
            yield guarded("processor", lambda: _processor(device))
            yield guarded("timing", lambda: _timing(device, model, inputs))


def tiny_net(folder: Path) -> tuple[Path, Path, NDArray[np.float32]]:
    """A chain of matrix products and ReLUs as a file, one example, and the output that numpy finds; (1, WIDTH) both."""
    generator = np.random.default_rng(0)
    weights = [(generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH / 2)).astype(np.float32) for _ in range(DEPTH)]
    example = expected = generator.standard_normal((1, WIDTH)).astype(np.float32)
    for weight in weights:
        expected = np.maximum(expected @ weight, 0)
    onnx.save(_chain(weights), folder / "tiny.onnx")
    np.save(folder / "example.npy", example)
    return folder / "tiny.onnx", folder / "example.npy", expected


def _chain(weights: list[NDArray[np.float32]]) -> onnx.ModelProto:
    nodes = []
    for index in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"y{index}"], name=f"product{index}"))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"], name=f"relu{index}"))
    ends = [helper.make_tensor_value_info(f"x{end}", TensorProto.FLOAT, ["n", WIDTH]) for end in (0, len(weights))]
    values = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _runtime(device: Device, target: Target, model: Path, inputs: Path, expected: NDArray[np.float32]) -> Check:
    described, outputs = device.describe(), device.outputs(model, inputs, 0, 1, 1)
    error = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    found = f"target {target.name}, {described['runtime']}: a file was loaded and run"
    wrong = f"its outputs are off by {error:.1%}; install another version of it" if not error < TOLERANCE else ""
    return Check("runtime", found, wrong, usable=not wrong)


def _processor(device: Device) -> Check:
    environment = device.environment()
    flags, governor = environment["flags"], environment["governor"]
    dot_products = [flag for flag in DOT_PRODUCTS if flag in flags]
    found = (
        f"{environment['device']}; integer dot products: {', '.join(dot_products) or 'none'}; all: {', '.join(flags) or '-'}"
    )
    advice = "" if dot_products else "INT8 gains less time here; `autocompress probe` tells what does"
    slow = "" if governor in (None, "performance") else f"governor {governor} changes the clock: set `performance` for timing"
    return Check("processor", found, "; ".join(filter(None, (advice, slow))))


def _timing(device: Device, model: Path, inputs: Path) -> Check:
    check = device.latency(model, model, inputs, TimingSettings(seconds=SECONDS))
    advice = "other programs run, or the clock changes: stop them for finer figures" if check.resolution > NOISY else ""
    return Check("timing", f"a net of {check.median_ms:.3f} ms against itself: {resolution_note(check)}", advice)
