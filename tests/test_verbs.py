"""A file from elsewhere is measured only where its outputs can be compared with FP32's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ConfigError
from autocompress.trials.trial import Bench
from autocompress.verbs import artifact_outputs


def written(path: Path, last: str, outputs: int = 10, kind: int = TensorProto.FLOAT) -> Path:
    """A model of the tiny task's inputs: a product, then one more operator."""
    weight = numpy_helper.from_array(np.full((64, outputs), -1.0, np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node(last, ["z"], ["y"], **({"to": kind} if last == "Cast" else {})),
    ]
    ends = [
        helper.make_tensor_value_info(name, type_, ["n", *rest])
        for name, type_, rest in (("x", TensorProto.FLOAT, [1, 8, 8]), ("y", kind, [outputs]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_outputs_of_the_same_form_are_taken(bench: Bench, tmp_path: Path) -> None:
    bench.evaluator.keep_reference(bench.graph, "report")
    assert artifact_outputs(bench.evaluator, written(tmp_path / "ok.onnx", "Tanh")).shape == (500, 10)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"last": "Log"}, "it gives NaN or infinity on the report set"),
        ({"last": "Tanh", "outputs": 9}, r"it gives float32 of shape \(500, 9\); expected float32 of shape \(500, 10\)"),
        ({"last": "Cast", "kind": TensorProto.INT64}, r"it gives int64 of shape \(500, 10\)"),
        ({"last": "NoSuchOperator"}, "the runtime cannot run it: target onnxruntime: outputs: "),
    ],
    ids=["NaN", "classes", "type", "operator"],
)
def test_others_are_refused_in_one_line(bench: Bench, tmp_path: Path, file: dict[str, object], words: str) -> None:
    bench.evaluator.keep_reference(bench.graph, "report")
    with pytest.raises(ConfigError, match=words) as error:
        artifact_outputs(bench.evaluator, written(tmp_path / "odd.onnx", **file))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
