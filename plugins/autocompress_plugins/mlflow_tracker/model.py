"""The delivered file as an MLflow model."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from numpy.typing import NDArray
    from onnx import ModelProto, TypeProto, ValueInfoProto


def log_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    path: Path,
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    example: Path | None = None,
) -> str:
    """What `mlflow.onnx.log_model` does, but without an active run and byte for byte; returns the model's id.

    Args:
        example: a file (.npy) with one input.
    """
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    model = client.create_logged_model(experiment_id, allowed_name(name), run_id, tags=dict(tags), params=dict(params))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with TemporaryDirectory() as folder:
        proto = onnx.load(path)
        _mlflow_onnx().save_model(
            proto,
            f"{folder}/model",
            mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
            signature=_signature(proto),
            input_example=_input_example(proto, example) if example else None,
            pip_requirements=_requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        # What was measured is what is delivered: not the file as written again by another version of onnx.
        shutil.copyfile(path, f"{folder}/model/model.onnx")
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def allowed_name(name: str) -> str:
    """Without what MLflow refuses."""
    return re.sub(r"[/:.%\"']", "_", name)


def _input_example(proto: ModelProto, example: Path) -> dict[str, NDArray[np.generic]]:
    return {_inputs(proto)[0].name: np.load(example)}


def _mlflow_onnx() -> ModuleType:
    with warnings.catch_warnings():
        # While it is imported, MLflow warns of the type hints in its own modules.
        warnings.filterwarnings("ignore", message=".*type hint", category=UserWarning)
        import mlflow.onnx
        import mlflow.pyfunc
    return mlflow.onnx


def _signature(proto: ModelProto) -> ModelSignature:
    """Names, types and shapes of the graph's inputs and outputs."""
    from mlflow.models import ModelSignature

    return ModelSignature(inputs=_schema(_inputs(proto)), outputs=_schema(proto.graph.output))


def _inputs(proto: ModelProto) -> list[ValueInfoProto]:
    weights = {initializer.name for initializer in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _schema(values: Iterable[ValueInfoProto]) -> Schema:
    from mlflow.types import Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors = [(value.name, value.type.tensor_type) for value in values]
    return Schema([TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), _shape(tensor), name) for name, tensor in tensors])


def _shape(tensor: TypeProto.Tensor) -> tuple[int, ...]:
    """-1 is a size that the file leaves open."""
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)


def _requirements() -> list[str]:
    """What loads the model: given, because inferring it would load the model in a process of its own."""
    return [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnx", "onnxruntime")]
