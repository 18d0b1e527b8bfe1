"""ONNX files before a runtime opens them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autocompress.inputs.onnx_files import check_fits, read_onnx
from tests.fuzz.mutation import mutated_bytes
from tests.fuzz.scratch_file import scratch_file
from tests.fuzz.target import Target


def file(shape: tuple[object, ...] = ("n", 3)) -> bytes:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="a")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 2))],
        [weight],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    return content


def outside() -> bytes:
    model = onnx.load_from_string(file())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    content: bytes = model.SerializeToString()
    return content


def read(data: bytes) -> None:
    path = scratch_file("model.onnx", data)
    check_fits(path, read_onnx(path), (3,), np.dtype(np.float32), None)


ONNX = Target([file(), file((1, 3)), file((2, 4)), outside()], read, mutated_bytes, runs=60_000)
