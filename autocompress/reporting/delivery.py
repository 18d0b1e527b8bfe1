"""What lies beside the delivered file: a script that runs it, how inputs are prepared, and its figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from autocompress.guarding.whole_file import put_in_place
from autocompress.record import SearchResult, StudyContext
from autocompress.reporting.answer import answer
from autocompress.reporting.report import comparison, notes, result_dict

FIGURES = ("status", "metric", "baseline", "best", "drop", "drop_ci", "device", "environment", "minimum_runtime", "versions")


def deliver(study: StudyContext, result: SearchResult, run_file: Path) -> SearchResult:
    """Add `run.py`, `README.md` and `figures.json` to the folder of the chosen file, and put it where the last answer was.

    Args:
        result: its file lies in a folder that `begun_folder` made.
        run_file: the target's script, `Target.run_file`.

    Returns:
        The result with the file's new path.
    """
    partial = result.best.artifact.path.parent
    delivered = _moved(result, partial.with_suffix(""))
    shutil.copyfile(run_file, partial / "run.py")
    told = result_dict(delivered)
    figures = {name: told[name] for name in FIGURES}
    (partial / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_readme(study, result), encoding="utf-8")
    put_in_place(partial)
    return delivered


def _moved(result: SearchResult, folder: Path) -> SearchResult:
    artifact = result.best.artifact
    return replace(result, best=replace(result.best, artifact=replace(artifact, path=folder / artifact.path.name)))


def _readme(study: StudyContext, result: SearchResult) -> str:
    rows = [("", "FP32", "best", "change"), ("---", "---:", "---:", "---:"), *comparison(result)]
    needs = ", ".join(f"{name} {version}" for name, version in result.minimum_runtime.items())
    parts = [
        f"# {study.model}: {answer(result)}",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "\n".join(f"- {note}" for note in notes(result)),
        f"Measured on {study.device} with {study.versions['runtime']}; the file needs {needs}.",
        "## Inputs and outputs\n\n" + "\n".join(f"- {line}" for line in _signature(result.best.artifact.path)),
        "## Preparing inputs\n\n" + "\n".join(f"- {step}" for step in preprocessing(study.config)),
        "## Running it\n\n```\npython run.py input.npy\n```",
        "`policy.yaml` and `state.safetensors`, where they are, build the same file again: `autocompress apply`.",
    ]
    return "\n\n".join(parts) + "\n"


def _signature(path: Path) -> list[str]:
    graph = onnx.load(path, load_external_data=False).graph
    sides = (("input", graph.input), ("output", graph.output))
    return [f"{side} `{value.name}`: {_type(value)}" for side, values in sides for value in values]


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}, shape ({', '.join(sizes)})"


def preprocessing(config: Mapping[str, Any]) -> list[str]:
    """What the configured data does before the model sees it, step by step; `config` is that of `StudyContext`."""
    data = config.get("data")
    if not data:
        return ["as those that were given to the search from Python: nothing is done to them"]
    if data.get("factory"):
        arguments = ", ".join(f"{name}={value}" for name, value in data.get("kwargs", {}).items())
        return [
            f"arrays as `{data['factory']}({arguments})` gives them",
            f"where it gives images instead: {_image(data['image'])}",
        ]
    return [_image(data["image"])]


def _image(image: Mapping[str, Any]) -> str:
    interpolation = getattr(image["interpolation"], "name", image["interpolation"])
    steps = [
        "grayscale" if image["grayscale"] else "RGB",
        f"short side to {image['resize']} pixels, {interpolation}, aspect ratio kept" if image["resize"] else "",
        f"central {image['crop']} x {image['crop']} pixels" if image["crop"] else "",
        "divide by 255, axes (channel, row, column), float32",
        f"subtract {list(image['mean'])} from the channels" if image["mean"] else "",
        f"divide the channels by {list(image['std'])}" if image["std"] else "",
    ]
    return ", then ".join(step for step in steps if step)
