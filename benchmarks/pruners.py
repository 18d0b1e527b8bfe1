"""One delivered file for each pruner and structure on ResNet-20: `python -m benchmarks.pruners`.

What was removed is counted in the file itself, with onnx and numpy only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from autocompress.config import CONFIG_MODULE, job_from, register
from autocompress.display.progress import Progress
from autocompress.policy import ChannelPolicy, LayerPolicy, Policy
from autocompress.record import SearchResult
from autocompress.registry import Registry, load_registry
from autocompress.run import run
from autocompress.verbs import build_task

RESULTS = Path(__file__).parent / "results"
SHARE = 0.5
INNER = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]


def policy(pruner: str, structure: str, layers: list[str]) -> Policy:
    """INT8 everywhere; half of the weights, or of the inner channels, removed."""
    if structure == "channel":
        return Policy(dict.fromkeys(layers, LayerPolicy("int8", 8)), dict.fromkeys(INNER, ChannelPolicy(pruner, SHARE)))
    return Policy(dict.fromkeys(layers, LayerPolicy("int8", 8, pruner, SHARE)))


def stored_weights(path: Path) -> list[NDArray[Any]]:
    """The integer codes of each layer, as the file's own operators expand them."""
    model = onnx.load(path)
    readers = {name: node for node in model.graph.node for name in node.input}
    codes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and _is_weight(node, readers)]
    return [_expanded(model, node.input[0]) for node in codes]


def _is_weight(node: onnx.NodeProto, readers: dict[str, onnx.NodeProto]) -> bool:
    reader = readers.get(node.output[0])
    return reader is not None and reader.op_type in {"Conv", "Gemm"} and reader.input[1] == node.output[0]


def _expanded(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    for initializer in model.graph.initializer:
        if initializer.name == name:
            return numpy_helper.to_array(initializer)
    part = onnx.helper.make_graph(
        _ancestors(model, name),
        "weight",
        [],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None)],
        model.graph.initializer,
    )
    outputs = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=model.opset_import)).run(None, {})
    assert isinstance(outputs, list)
    return np.asarray(outputs[0])


def _ancestors(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The operators that a value is computed from, in order."""
    wanted, found = {name}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def deliver(pruner: str, structure: str, registry: Registry) -> dict[str, Any]:
    """Search with one seed and one trial, so that the pruned file is the one delivered."""
    overrides = ["+experiment=cifar10_resnet20", f"pruner=[{pruner}]", "objective=size", "tracking=[]", "search.trials=1"]
    overrides += [f"space.sparsities=[{SHARE}]", f"space.structures=[{structure}]"]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        job = job_from(compose("search", overrides=overrides), registry, Path())
    with tempfile.TemporaryDirectory() as folder:
        layers = ["conv1", *INNER, *(name.replace("conv1", "conv2") for name in INNER), "linear"]
        seed = Path(folder) / "seed.yaml"
        seed.write_text(yaml.safe_dump(policy(pruner, structure, layers).to_dict()))
        job.settings.search.seeds = [str(seed)]
        settings = replace(job.settings, folder=Path(folder))
        result = run(build_task(job, settings, Progress()), settings, registry, Progress())
        return {"pruner": pruner, "structure": structure, **_figures(result)}


def _figures(result: SearchResult) -> dict[str, Any]:
    weights = stored_weights(result.best.artifact.path)
    return {
        "status": result.status,
        "reasons": list(result.reasons),
        "weights_in_file": sum(weight.size for weight in weights),
        "zeros_in_file": int(sum((weight == 0).sum() for weight in weights)),
        "channels_in_file": [int(weight.shape[0]) for weight in weights],
        "size_ratio": result.best.measurement.size_ratio,
        "latency_ratio": result.best.measurement.latency_ratio,
        "drop": result.drop,
        "drop_ci": result.drop_ci,
    }


def main() -> None:
    """Each pruner with each structure."""
    registry = load_registry()
    register(registry)
    rows = [
        deliver(pruner, structure, registry) for pruner in registry.names("pruner") for structure in ("unstructured", "channel")
    ]
    RESULTS.mkdir(exist_ok=True)
    content = {"command": "python -m benchmarks.pruners", "share": SHARE, "rows": rows}
    (RESULTS / "pruners.json").write_text(json.dumps(content, indent=2) + "\n")
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")


if __name__ == "__main__":
    main()
