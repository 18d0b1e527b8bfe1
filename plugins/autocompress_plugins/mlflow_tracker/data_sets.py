"""The data of a study as MLflow's dataset inputs: digest, size and shape, never the examples."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from autocompress import StudyContext
    from autocompress.data_set import DataSet


def dataset_inputs(study: StudyContext) -> list[DatasetInput]:
    """One for each set; its use (`calibration`, `search`, `report`) is the context."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    source = json.dumps(study.config.get("data", {}), default=str)
    return [
        DatasetInput(
            Dataset(f"{study.model} {use}", facts.digest, "autocompress", source, _schema(facts), _profile(facts)),
            [InputTag(MLFLOW_DATASET_CONTEXT, use)],
        )
        for use, facts in study.data_sets.items()
    ]


def _schema(facts: DataSet) -> str:
    """As MLflow writes that of a NumPy array."""
    tensor = {"type": "tensor", "tensor-spec": {"dtype": facts.dtype, "shape": [-1, *facts.shape]}}
    return json.dumps({"mlflow_tensorspec": {"features": json.dumps([tensor]), "targets": None}})


def _profile(facts: DataSet) -> str:
    return json.dumps({"num_examples": facts.examples, "features_shape": [facts.examples, *facts.shape]})
