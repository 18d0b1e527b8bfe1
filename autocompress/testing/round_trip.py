"""Settings of a component, through Hydra's configuration and JSON and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from omegaconf import OmegaConf


def check_settings(component: Any) -> None:
    """The fields are a valid Hydra configuration, and the component comes back equal from JSON."""
    settings = json.loads(json.dumps(dataclasses.asdict(component), default=lambda member: member.name))
    config = OmegaConf.merge(OmegaConf.structured(type(component)), settings)
    assert OmegaConf.to_object(config) == component, f"settings {settings} do not give the same component back"
