"""Files that are no model of the task are refused before a runtime opens them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ConfigError
from autocompress.inputs.onnx_files import check_fits, read_onnx

FLOAT = np.dtype(np.float32)


def model(shape: tuple[object, ...] = ("n", 3), kind: int = TensorProto.FLOAT, inputs: int = 1) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    ends = [helper.make_tensor_value_info(f"x{place}", kind, shape) for place in range(inputs)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("MatMul", ["x0", "w"], ["y"])], "g", ends, outputs, [weight])
    return helper.make_model(graph)


def outside(location: str) -> onnx.ModelProto:
    made = model()
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    made.graph.initializer[0].external_data.add(key="location", value=location)
    return made


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.textproto"], ids=str)
@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 100, b"{}", b"\x08\x0a"], ids=str)
def test_what_is_no_model_is_refused_whatever_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(ConfigError, match="expected an ONNX file; this is something else"):
        read_onnx(written(tmp_path / name, content))


@pytest.mark.parametrize("location", ["weights.bin", "../../secret", "/etc/passwd"])
def test_weights_in_another_file_are_refused(tmp_path: Path, location: str) -> None:
    path = written(tmp_path / "model.onnx", outside(location).SerializeToString())
    with pytest.raises(ConfigError, match="tensor 'w' lies in another file"):
        read_onnx(path)


def test_so_are_those_within_an_operator(tmp_path: Path) -> None:
    made = model()
    made.graph.node[0].attribute.append(helper.make_attribute("body", outside("x").graph))
    with pytest.raises(ConfigError, match="tensor 'w' lies in another file"):
        read_onnx(written(tmp_path / "model.onnx", made.SerializeToString()))


@pytest.mark.parametrize("shape", [("n", 3), ("n", "m"), None])
def test_a_file_that_takes_the_inputs_is_taken(tmp_path: Path, shape: tuple[object, ...]) -> None:
    path = written(tmp_path / "model.onnx", model(shape).SerializeToString())
    check_fits(path, read_onnx(path), (3,), FLOAT, None)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (model(("n", 4)), r"float of shape \(any, 4\); expected float32 of shape \(any, 3\)"),
        (model((1, 3)), r"float of shape \(1, 3\); expected float32 of shape \(any, 3\)"),
        (model(("n", 3, 1)), r"float of shape \(any, 3, 1\)"),
        (model(kind=TensorProto.INT64), "its input is int64"),
        (model(inputs=2), "it has 2 inputs and 1 outputs; expected one input"),
    ],
    ids=["features", "batch", "axes", "type", "inputs"],
)
def test_one_that_does_not_is_refused(tmp_path: Path, made: onnx.ModelProto, words: str) -> None:
    path = written(tmp_path / "model.onnx", made.SerializeToString())
    with pytest.raises(ConfigError, match=words):
        check_fits(path, read_onnx(path), (3,), FLOAT, None)
