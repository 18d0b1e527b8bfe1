"""The delivered file in MLflow's model registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autocompress_plugins.mlflow_tracker.model import allowed_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from autocompress import SearchResult

CHAMPION = "champion"
SHA256 = "autocompress.sha256"


def ships(result: SearchResult) -> bool:
    """Whether the answer is a file to use; what does not fit, or was the best when someone stopped the search, is none."""
    return result.status in ("feasible", "unproven", "not_worth_it")


def register(client: MlflowClient, name: str, model_id: str, tags: Mapping[str, str]) -> str:
    """Make a logged model the champion of that name; returns `NAME/VERSION`. A file that has a version keeps it.

    Args:
        tags: the figures, and what tells the file from others (`SHA256`).
    """
    name = allowed_name(name)
    _ensure_model(client, name)
    version = _version_of(client, name, tags[SHA256])
    if version is None:
        version = _create_version(client, name, model_id, tags)
    else:
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    return f"{name}/{version.version}"


def is_registered(client: MlflowClient, run_id: str) -> bool:
    """Whether the model that a run delivered has a version."""
    return bool(client.search_model_versions(f"run_id = '{run_id}'", max_results=1))


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(client: MlflowClient, name: str, sha256: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.tags.get(SHA256) == sha256), None)


def _create_version(client: MlflowClient, name: str, model_id: str, tags: Mapping[str, str]) -> ModelVersion:
    model = client.get_logged_model(model_id)
    # A database asks MLflow's global client for `models:/ID`, and a server allows nothing else.
    source = f"models:/{model_id}" if client.tracking_uri.startswith("http") else model.artifact_location
    return client.create_model_version(name, source, model.source_run_id, dict(tags), model_id=model_id)
