"""A saved view of the table of runs: MLflow shows no metric in it, hides children and cuts names short until someone clicks."""

from __future__ import annotations

import json
import time

_KEY = "autocompress"
_COLUMN_WIDTHS = {
    "attributes.`Run Name`": 265,
    "runDateAndNestInfo": 130,
    "duration": 75,
    "metrics.`quality/accuracy`": 125,
    "metrics.`latency/ratio`": 100,
    "metrics.`size/ratio`": 90,
    "metrics.`latency/median_ms`": 145,
    "metrics.`size/bytes`": 90,
    "tags.`autocompress.kind`": 80,
    "tags.`autocompress.gate`": 80,
    "tags.`autocompress.feasible`": 80,
    "tags.`autocompress.reason`": 300,
}


def kind_tag() -> dict[str, str]:
    """Shows an experiment in MLflow's pages for models instead of those for language model applications."""
    return {"mlflow.experimentKind": "custom_model_development"}


def view_tag() -> dict[str, str]:
    """Offers the view under "Views" of an experiment."""
    columns = [column for column in _COLUMN_WIDTHS if column.startswith(("metrics.", "tags."))]
    state = {
        "selectedColumns": columns,
        "columnOrder": list(_COLUMN_WIDTHS),
        "columnWidths": _COLUMN_WIDTHS,
        # In any order but that of time, MLflow shows children without a click on their parent; a view cannot unfold one.
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
    }
    view = {"name": _KEY, "createdAt": int(time.time() * 1000), "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{_KEY}": json.dumps(view)}


def fragment(experiment_id: str) -> str:
    """The end of the address that opens the view."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={_KEY}"
