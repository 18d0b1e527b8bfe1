"""Files that other quantizers make of the same FP32 file and the same calibration examples.

NNCF comes with `pip install autocompress[compare]`; without it its column is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from autocompress.errors import RuntimeCrashError
from autocompress.measuring.device import Device

Tool = Callable[[Path, Path, NDArray[Any]], None]


def by_quantize_static(reference: Path, path: Path, examples: NDArray[Any]) -> None:
    """ONNX Runtime's own: QDQ, per channel, and its defaults."""
    quantize_static(reference, path, _Reader(_input_name(reference), examples), quant_format=QuantFormat.QDQ, per_channel=True)


def by_nncf(reference: Path, path: Path, examples: NDArray[Any]) -> None:
    """NNCF's `quantize` with its defaults."""
    import nncf

    name = _input_name(reference)
    dataset = nncf.Dataset([{name: example[None]} for example in examples])
    onnx.save(nncf.quantize(onnx.load(reference), dataset, subset_size=len(examples)), path)


def made_by_others(reference: Path, folder: Path, examples: NDArray[Any]) -> dict[str, Path]:
    """Tool to its file, of those that are installed.

    Args:
        examples: the calibration set, shape (N, ...).
    """
    tools: dict[str, Tool] = {"quantize_static": by_quantize_static}
    if find_spec("nncf") is not None:
        tools["nncf"] = by_nncf
    else:
        sys.stdout.write("NNCF is not compared: it is not installed (extra `compare`)\n")
    return {name: _file(tool, reference, folder / f"{name}.onnx", examples) for name, tool in tools.items()}


def that_run(device: Device, files: Mapping[str, Path], inputs: Path) -> dict[str, Path]:
    """Those that the target's runtime accepts; of the others it is printed why not.

    Args:
        inputs: one example, an .npy file.
    """
    return {name: path for name, path in files.items() if _runs(device, name, path, inputs)}


def _runs(device: Device, name: str, path: Path, inputs: Path) -> bool:
    try:
        device.outputs(path, inputs, 0, 1, 1)
    except RuntimeCrashError as error:
        sys.stdout.write(f"the file of {name} does not run: {error}\n")
        return False
    return True


def _file(tool: Tool, reference: Path, path: Path, examples: NDArray[Any]) -> Path:
    tool(reference, path, examples)
    return path


def _input_name(path: Path) -> str:
    name: str = onnx.load(path).graph.input[0].name
    return name


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """One example at a time."""

    def __init__(self, name: str, examples: NDArray[Any]) -> None:
        self._name, self._rest = name, iter(examples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        example = next(self._rest, None)
        return None if example is None else {self._name: example[None]}
